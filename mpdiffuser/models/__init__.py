"""The networks. Each is a diffusers ModelMixin: `save_pretrained` / `from_pretrained`, config.json + safetensors."""
