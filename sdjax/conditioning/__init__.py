"""Turns what a picture is asked for (prompts, phrases) into a Cond or into CLIP embeddings."""
