"""CLIP's text and image towers."""
