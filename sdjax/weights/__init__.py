"""Files of other projects <-> our parameter trees: diffusers folders, CompVis' single files, the hub, CLIP and
LPIPS."""
