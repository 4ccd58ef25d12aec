"""From the reference to the engine that people deploy: vLLM's configuration, written, translated and explained."""
