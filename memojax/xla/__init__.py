"""The edge to JAX, XLA and the operating system: clients, compile options, threads, forks, memory."""
