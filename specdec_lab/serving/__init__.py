"""From the reference to deployment: vLLM's configuration, and measurements of its servers."""
