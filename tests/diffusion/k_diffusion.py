"""Samplers of k-diffusion 0.1.1, its `sampling.py` line by line in float64 numpy, and diffusers' DEIS.

They walk k-diffusion's own variable y = x sqrt(1 + sigma^2). model(y, sigma) is x0, `sigmas` end in 0, and `fresh`
holds unit noise: [i] is that of our row i. Arguments that k-diffusion does not have make the mistakes that tests catch.
"""

import numpy as np


def to_d(y, sigma, denoised):
    return (y - denoised) / sigma


def sample_euler(model, y, sigmas, fresh):
    for i in range(len(sigmas) - 1):
        y = y + to_d(y, sigmas[i], model(y, sigmas[i])) * (sigmas[i + 1] - sigmas[i])
    return y


def sample_euler_ancestral(model, y, sigmas, fresh, eta=1.0):
    for i in range(len(sigmas) - 1):
        start, end = sigmas[i], sigmas[i + 1]
        up = min(end, eta * (end**2 * (start**2 - end**2) / start**2) ** 0.5)
        down = (end**2 - up**2) ** 0.5
        y = y + to_d(y, start, model(y, start)) * (down - start) + (fresh[i] * up if end > 0 else 0.0)
    return y


def sample_heun(model, y, sigmas, fresh):
    for i in range(len(sigmas) - 1):
        d, dt = to_d(y, sigmas[i], model(y, sigmas[i])), sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            y = y + d * dt
        else:
            y_2 = y + d * dt
            y = y + (d + to_d(y_2, sigmas[i + 1], model(y_2, sigmas[i + 1]))) / 2 * dt
    return y


def sample_lms(model, y, sigmas, fresh, order=4):
    ds = []
    for i in range(len(sigmas) - 1):
        ds = [*ds, to_d(y, sigmas[i], model(y, sigmas[i]))][-order:]
        total = 0.0
        for j, d in enumerate(reversed(ds)):
            others = np.asarray([sigmas[i - k] for k in range(len(ds)) if k != j])
            points, weights = np.polynomial.legendre.leggauss(8)
            t = (sigmas[i] + sigmas[i + 1]) / 2 + (sigmas[i + 1] - sigmas[i]) / 2 * points
            basis = np.prod((t[:, None] - others) / (sigmas[i - j] - others), axis=1)
            total = total + d * np.dot(weights, basis) * (sigmas[i + 1] - sigmas[i]) / 2
        y = y + total
    return y


def sample_dpmpp_2m(model, y, sigmas, fresh):
    old, t = None, lambda sigma: -np.log(sigma)
    for i in range(len(sigmas) - 1):
        denoised = model(y, sigmas[i])
        if sigmas[i + 1] == 0:
            return denoised
        h = t(sigmas[i + 1]) - t(sigmas[i])
        d = denoised
        if old is not None:
            r = (t(sigmas[i]) - t(sigmas[i - 1])) / h
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        y, old = sigmas[i + 1] / sigmas[i] * y - np.expm1(-h) * d, denoised


def sample_dpmpp_2m_sde(model, y, sigmas, fresh, eta=1.0):
    old = h_last = None
    for i in range(len(sigmas) - 1):
        denoised = model(y, sigmas[i])
        if sigmas[i + 1] == 0:
            return denoised
        h = np.log(sigmas[i]) - np.log(sigmas[i + 1])
        eta_h = eta * h
        y = sigmas[i + 1] / sigmas[i] * np.exp(-eta_h) * y - np.expm1(-h - eta_h) * denoised
        if old is not None:
            y = y - 0.5 * np.expm1(-h - eta_h) * (h / h_last) * (denoised - old)
        y = y + fresh[i] * sigmas[i + 1] * (-np.expm1(-2 * eta_h)) ** 0.5
        old, h_last = denoised, h


def ancestral(start, end, eta):
    """get_ancestral_step."""
    up = min(end, eta * (end**2 * (start**2 - end**2) / start**2) ** 0.5)
    return (end**2 - up**2) ** 0.5, up


def sample_dpm_2(model, y, sigmas, fresh, mean=lambda a, b: np.sqrt(a * b)):
    for i in range(len(sigmas) - 1):
        d = to_d(y, sigmas[i], model(y, sigmas[i]))
        if sigmas[i + 1] == 0:
            y = y + d * (sigmas[i + 1] - sigmas[i])
        else:
            mid = mean(sigmas[i], sigmas[i + 1])
            y_2 = y + d * (mid - sigmas[i])
            y = y + to_d(y_2, mid, model(y_2, mid)) * (sigmas[i + 1] - sigmas[i])
    return y


def sample_dpm_2_ancestral(model, y, sigmas, fresh, eta=1.0, middle_of_step=False):
    for i in range(len(sigmas) - 1):
        down, up = ancestral(sigmas[i], sigmas[i + 1], eta)
        d = to_d(y, sigmas[i], model(y, sigmas[i]))
        if down == 0:
            y = y + d * (down - sigmas[i])
        else:
            mid = np.exp((np.log(sigmas[i]) + np.log(sigmas[i + 1] if middle_of_step else down)) / 2)
            y_2 = y + d * (mid - sigmas[i])
            y = y + to_d(y_2, mid, model(y_2, mid)) * (down - sigmas[i])
            y = y + fresh[2 * i + 1] * up
    return y


def sample_dpmpp_2s_ancestral(model, y, sigmas, fresh, eta=1.0, r=1 / 2):
    for i in range(len(sigmas) - 1):
        denoised = model(y, sigmas[i])
        down, up = ancestral(sigmas[i], sigmas[i + 1], eta)
        if down == 0:
            y = y + to_d(y, sigmas[i], denoised) * (down - sigmas[i])
        else:
            t, t_next = -np.log(sigmas[i]), -np.log(down)
            h = t_next - t
            s = t + r * h
            y_2 = np.exp(-s) / np.exp(-t) * y - np.expm1(-h * r) * denoised
            y = np.exp(-t_next) / np.exp(-t) * y - np.expm1(-h) * model(y_2, np.exp(-s))
        if sigmas[i + 1] > 0:
            y = y + fresh[2 * i + 1] * up
    return y


def brownian(fresh, i, start, mid, end):
    """The increments of one Brownian motion in sigma, from start to mid and from start to end, made unit noise: what
    BrownianTreeNoiseSampler returns, if the increments from start to mid and from mid to end are those of `fresh`."""
    first = (start - mid) ** 0.5 * fresh[2 * i]
    return first / (start - mid) ** 0.5, (first + (mid - end) ** 0.5 * fresh[2 * i + 1]) / (start - end) ** 0.5


def sample_dpmpp_sde(model, y, sigmas, fresh, eta=1.0, noises=brownian):
    for i in range(len(sigmas) - 1):
        denoised = model(y, sigmas[i])
        if sigmas[i + 1] == 0:
            y = y + to_d(y, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
        else:
            t, t_next = -np.log(sigmas[i]), -np.log(sigmas[i + 1])
            mid = np.exp(-(t + (t_next - t) / 2))
            first, whole = noises(fresh, i, sigmas[i], mid, sigmas[i + 1])
            sd, su = ancestral(sigmas[i], mid, eta)
            y_2 = sd / sigmas[i] * y - np.expm1(t + np.log(sd)) * denoised + first * su
            denoised_2 = model(y_2, mid)
            sd, su = ancestral(sigmas[i], sigmas[i + 1], eta)
            y = sd / sigmas[i] * y - np.expm1(t + np.log(sd)) * denoised_2 + whole * su
    return y


def sample_dpmpp_3m_sde(model, y, sigmas, fresh, eta=1.0, half=0.5):
    denoised_1 = denoised_2 = h_1 = h_2 = None
    for i in range(len(sigmas) - 1):
        denoised = model(y, sigmas[i])
        if sigmas[i + 1] == 0:
            return denoised
        h = np.log(sigmas[i]) - np.log(sigmas[i + 1])
        h_eta = h * (eta + 1)
        y = np.exp(-h_eta) * y - np.expm1(-h_eta) * denoised
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
            d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
            phi_2 = np.expm1(-h_eta) / h_eta + 1
            y = y + phi_2 * d1 - (phi_2 / h_eta - half) * d2
        elif h_1 is not None:
            y = y + (np.expm1(-h_eta) / h_eta + 1) * (denoised - denoised_1) / (h_1 / h)
        y = y + fresh[i] * sigmas[i + 1] * (-np.expm1(-2 * h * eta)) ** 0.5
        denoised_1, denoised_2, h_1, h_2 = denoised, denoised_1, h, h_1


def sample_deis(model, y, sigmas, fresh, short=15, log=np.log):
    """diffusers' DEISMultistepScheduler, order 2, its integrals by quadrature. `sigmas` end at timestep 0's."""
    old, (points, weights) = None, np.polynomial.legendre.leggauss(64)
    for i in range(len(sigmas) - 1):
        start, end = sigmas[i], sigmas[i + 1]
        d = to_d(y, start, model(y, start))
        if old is None or (i == len(sigmas) - 2 and len(sigmas) - 1 < short):
            y = y + (end - start) * d
        else:
            t = (start + end) / 2 + (end - start) / 2 * points
            share = (log(t) - log(start)) / (log(sigmas[i - 1]) - log(start))  # of the older d
            weight = np.dot(weights, share) * (end - start) / 2
            y = y + (end - start - weight) * d + weight * old
        old = d
    return y


KDIFFUSION = {
    "euler": sample_euler,
    "euler_a": sample_euler_ancestral,
    "heun": sample_heun,
    "lms": sample_lms,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "dpmpp_sde": sample_dpmpp_sde,
    "dpmpp_2s_a": sample_dpmpp_2s_ancestral,
    "dpmpp_3m_sde": sample_dpmpp_3m_sde,
    "dpm2": sample_dpm_2,
    "dpm2_a": sample_dpm_2_ancestral,
    "deis": sample_deis,
}
