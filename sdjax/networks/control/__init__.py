"""ControlNets: pictures that steer a UNet, through a copy of its way down (arXiv 2302.05543)."""
