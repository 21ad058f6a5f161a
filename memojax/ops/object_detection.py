"""NonMaxSuppression and RoiAlign."""
