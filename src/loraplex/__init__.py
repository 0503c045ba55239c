"""Loraplex: many tenants' LoRA adapters served from one shared base model."""

__version__ = "0.1.0"
