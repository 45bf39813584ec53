"""Files of other projects <-> our parameter trees: diffusers folders, CompVis' files, the hub, CLIP, LPIPS."""
