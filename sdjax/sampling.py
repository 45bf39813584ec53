"""The samplers as a library of their own: tables of rows, one loop over them, and denoisers made from networks.

    table = plan("dpmpp_2m", make_schedule(sd.config.schedule), 20, sigmas="karras")
    denoiser = sdjax.denoiser(sd, cond, uncond, guidance_scale=4.0)  # or any function (x, sigma) -> x0
    x = sample(table.rows, denoiser, start(table, noise)).x

This file only lists the public names. The code is in sdjax/diffusion/.
"""

from sdjax.diffusion.guidance import Denoiser, Predictor, at_timesteps, to_denoiser, with_guidance
from sdjax.diffusion.noise import slerp
from sdjax.diffusion.plan import Plan, make_grid, plan, table
from sdjax.diffusion.prediction import add_noise, eps_to_x0, v_to_eps, v_to_x0
from sdjax.diffusion.process import alpha_s
from sdjax.diffusion.rows import Grid, Row, eps_row, x0_row
from sdjax.diffusion.sampler import State, Trace, sample, start
from sdjax.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule, sigma_to_t, t_to_sigma
from sdjax.diffusion.tables import Sampler, samplers

__all__ = [
    "Denoiser",
    "Grid",
    "NoiseSchedule",
    "Plan",
    "Predictor",
    "Row",
    "Sampler",
    "ScheduleConfig",
    "State",
    "Trace",
    "add_noise",
    "alpha_s",
    "at_timesteps",
    "eps_row",
    "eps_to_x0",
    "make_grid",
    "make_schedule",
    "plan",
    "sample",
    "samplers",
    "sigma_to_t",
    "slerp",
    "start",
    "t_to_sigma",
    "table",
    "to_denoiser",
    "v_to_eps",
    "v_to_x0",
    "with_guidance",
    "x0_row",
]
