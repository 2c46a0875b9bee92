"""The networks. Each is a diffusers ModelMixin: `save_pretrained` writes config.json and a safetensors file."""
