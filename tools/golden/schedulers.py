"""Golden trajectories of diffusers' schedulers, for crates/sd-scheduler/tests/golden.rs.

    python tools/golden/schedulers.py          writes tests/golden/scheduler/
    python tools/golden/schedulers.py ddim     only what concerns the group `ddim`

The network is a fixed function of its input and the timestep, so that a case is a scheduler's arithmetic and nothing
else. Tables and schedules are made as diffusers makes them, in f32; the steps are then taken in f64, because in f32 the
reference itself loses up to four digits where sigma is large. cases.json lists groups (one scheduler file each) of runs; the tensors of run `k` of group `g` are `g.k.x` (the
latents after the calls that the run lists, the start first), `g.k.timesteps` and `g.k.sigmas` (if the class has them).
A run that diffusers refuses, or that ends in NaN, has `refused` instead.
"""

import json
import math
import sys
import types
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "scheduler"
SHAPE = (2, 2, 3, 2)
STEPS = [1, 2, 3, 4, 7, 10, 20, 30, 50]
FEW = [1, 2, 3, 7, 20]
SPACINGS = ["leading", "trailing", "linspace"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
LATENT = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

# scheduler_config.json of the published models; from_config turns each of them into any other class.
PUBLISHED = {
    "v1.5": dict(_class_name="PNDMScheduler", **LATENT, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1,
                 trained_betas=None, clip_sample=False),
    "v2.1": dict(_class_name="DDIMScheduler", **LATENT, clip_sample=False, prediction_type="v_prediction",
                 set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, trained_betas=None),
    "xl": dict(_class_name="EulerDiscreteScheduler", **LATENT, clip_sample=False, interpolation_type="linear",
               prediction_type="epsilon", sample_max_value=1.0, set_alpha_to_one=False, skip_prk_steps=True,
               steps_offset=1, timestep_spacing="leading", trained_betas=None, use_karras_sigmas=False),
    "xl-turbo": dict(_class_name="EulerAncestralDiscreteScheduler", **LATENT, clip_sample=False,
                     interpolation_type="linear", prediction_type="epsilon", sample_max_value=1.0,
                     set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, timestep_spacing="trailing",
                     trained_betas=None),
    "lcm": dict(_class_name="LCMScheduler", **LATENT, clip_sample=False, clip_sample_range=1.0,
                dynamic_thresholding_ratio=0.995, original_inference_steps=50, prediction_type="epsilon",
                rescale_betas_zero_snr=False, sample_max_value=1.0, set_alpha_to_one=True, steps_offset=1,
                thresholding=False, timestep_scaling=10.0, timestep_spacing="leading", trained_betas=None),
    "bare": dict(_class_name="DDIMScheduler"),
}


def network(x, t):
    return torch.tanh(0.7 * x) + 0.1 * math.sin(float(t) / 100)


class Noise:
    """Stands in for diffusers' randn_tensor: a recorded stream that counts its draws."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(7)
        self.tensors = torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(count)])
        self.used = 0

    def __call__(self, shape, generator=None, device=None, dtype=None, layout=None):
        assert tuple(shape) == SHAPE
        self.used += 1
        return self.tensors[self.used - 1].to(dtype)


class BrownianPath:
    """Stands in for diffusers' Brownian tree: increments over the first half and the whole of a step, in units of
    their deviation, made of two draws."""

    def __init__(self, noise):
        self.noise, self.start = noise, None

    def __call__(self, sigma, sigma_next):
        if self.start != sigma:
            self.start, self.middle, self.first = sigma, sigma_next, self.noise(SHAPE, dtype=torch.float64)
            return self.first
        whole, half = sigma - sigma_next, sigma - self.middle
        return (half / whole) ** 0.5 * self.first + ((whole - half) / whole) ** 0.5 * self.noise(SHAPE, dtype=torch.float64)


class Dpmpp2sAncestral(diffusers.EulerDiscreteScheduler):
    """k-diffusion's sample_dpmpp_2s_ancestral, which diffusers lacks, on diffusers' sigmas."""

    ours = "dpmpp_2s_a"

    def set_timesteps(self, num_inference_steps):
        super().set_timesteps(num_inference_steps)
        sigmas, timesteps = self.sigmas.double(), self.timesteps.tolist()
        table = np.log((((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).double().numpy())
        self.up = (sigmas[1:] ** 2 * (sigmas[:-1] ** 2 - sigmas[1:] ** 2) / sigmas[:-1] ** 2) ** 0.5
        self.down = sigmas[1:] ** 2 / sigmas[:-1]
        middle = (sigmas[:-1] * self.down) ** 0.5
        self.sigmas = torch.stack([sigmas[:-1], middle], dim=1).flatten()
        between = [float(self._sigma_to_t(sigma, table)) for sigma in middle[:-1].numpy()]
        self.timesteps = torch.tensor([t for pair in zip(timesteps, between + [0]) for t in pair][:-1])

    def step(self, output, timestep, x):
        i = self.step_index
        sigma, last = self.sigmas[i], i + 1 == len(self.timesteps)
        kind = self.config.prediction_type
        denoised = (output if kind == "sample" else x - sigma * output if kind == "epsilon"
                    else x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5)
        self._step_index += 1
        if i % 2 == 0:
            self.start = x
            target = self.sigmas[i + 1]
            x = x + (x - denoised) / sigma * (target - sigma)
        else:
            h = -(self.down[i // 2] / self.sigmas[i - 1]).log()
            x = (-h).exp() * self.start - (-h).expm1() * denoised
            x = x + self.up[i // 2] * self.randn_tensor(SHAPE, dtype=torch.float64)
        return types.SimpleNamespace(prev_sample=x)


class Torch64:
    """torch, except that what is upcast to f32 is upcast to f64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def in_f64(scheduler):
    """Keeps the scheduler's f32 tables and schedules, but lets it compute with them in f64."""
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and name != "timesteps":
            setattr(scheduler, name, value.double())
    if hasattr(scheduler, "sigmas_down"):
        # What set_timesteps derives from the sigmas.
        sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
        following = torch.cat([sigmas[1:], sigmas[-1:]])
        up = (following**2 * (sigmas**2 - following**2) / sigmas**2) ** 0.5
        down = following**2 / sigmas
        middle = (sigmas * down) ** 0.5
        for name, values in dict(sigmas_up=up, sigmas_down=down, sigmas_interpol=middle).items():
            values = torch.nan_to_num(values)
            setattr(scheduler, name, torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]]))


def call_sigmas(scheduler):
    """The sigma of each call's input, and the last."""
    sigmas = scheduler.sigmas.clone()
    if hasattr(scheduler, "sigmas_interpol"):
        # Every second call is made halfway down.
        shift = 1 if hasattr(scheduler, "sigmas_up") else 0
        sigmas[1 : len(scheduler.timesteps) : 2] = scheduler.sigmas_interpol[1 - shift : len(scheduler.timesteps) - shift : 2]
    if hasattr(scheduler, "noise_sampler"):
        sigmas[1:-1:2] = (sigmas[:-2:2] * sigmas[1:-1:2]) ** 0.5
    return sigmas[: len(scheduler.timesteps) + 1]


def module_of(cls):
    """The module of diffusers that the class comes from."""
    return sys.modules[next(base.__module__ for base in cls.__mro__ if base.__module__.startswith("diffusers"))]


def run(scheduler, steps, begin, arguments, clean, noise):
    own = {key: arguments[key] for key in arguments if key in ("timesteps", "sigmas")}
    step_arguments = {key: arguments[key] for key in arguments if key not in own}
    module = module_of(type(scheduler))
    module.randn_tensor = noise
    scheduler.set_timesteps(**own or dict(num_inference_steps=steps))
    in_f64(scheduler)
    module.torch = Torch64()
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = BrownianPath(noise)
    scheduler.randn_tensor = noise
    noise.used = 0
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if begin == 0:
        # Standard normal at the start, as a pipeline does.
        x = clean.double() * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(clean.double(), noise(SHAPE, dtype=torch.float64), timesteps[:1])
    rows = {0: x}
    for call, t in enumerate(timesteps):
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **step_arguments).prev_sample
        rows[call + 1] = x
    end = len(timesteps)
    kept = sorted({0, 1, 2, 3, end // 2, end} & set(rows))
    return scheduler, kept, torch.stack([rows[k].float() for k in kept])


def group(cls, file, runs, arguments):
    """`arguments` go to every step, or to set_timesteps."""
    entry = dict(file=file, runs=runs, arguments=arguments)
    if cls.__name__ != file["_class_name"]:
        entry["as"] = getattr(cls, "ours", cls.__name__)
    return cls, entry


def matrix(cls, predictions=PREDICTIONS, spacings=SPACINGS, variants=({},), extra=(), begin_calls=1, **keys):
    """The usual cases of a class: spacings by predictions by steps, then the same for fewer steps with each of
    `variants`, then single configurations, then the published files. Some runs start in the middle, at a multiple of
    `begin_calls`."""
    base = dict(_class_name="" if hasattr(cls, "ours") else cls.__name__, **LATENT, **keys)
    groups = []
    for spacing in spacings:
        for prediction in predictions:
            for variant in variants:
                plain = variant is variants[0]
                steps = (STEPS if prediction == "epsilon" else FEW) if plain else FEW[1:]
                offset = 1 if spacing == "leading" else 0
                file = dict(base, timestep_spacing=spacing, prediction_type=prediction, steps_offset=offset, **variant)
                runs = [dict(steps=n) for n in steps]
                if prediction != "sample" and begin_calls:
                    for n, skipped in [(7, 2), (10, 3), (20, 4), (20, 13)] if plain else [(10, 3)]:
                        runs.append(dict(steps=n, begin=skipped * begin_calls))
                groups.append(group(cls, file, runs, {}))
    for changes in extra:
        arguments = {key: changes[key] for key in changes if key in ARGUMENTS}
        file = {**base, **{key: changes[key] for key in changes if key not in ARGUMENTS}}
        own = len(arguments.get("timesteps", arguments.get("sigmas", [0])[:-1]))
        groups.append(group(cls, file, [dict(steps=n) for n in ([own] if own else FEW + [10])], arguments))
    for file in PUBLISHED.values():
        groups.append(group(cls, file, [dict(steps=n) for n in (1, 4, 20)], {}))
    return groups


ARGUMENTS = {"eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "timesteps", "sigmas"}
AYS = dict(timesteps=[999, 850, 736, 645, 545, 455, 343, 233, 124, 24])
AYS_SIGMAS = dict(sigmas=[14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0])
# Of the caller's own; the last three are refused.
TIMESTEPS = [AYS, dict(AYS, prediction_type="v_prediction"), dict(timesteps=[999, 759, 499, 259]), dict(timesteps=[400, 3, 0]),
             dict(timesteps=[600]), dict(timesteps=[500, 500, 20]), dict(timesteps=[20, 500]), dict(timesteps=[1000, 500])]
KARRAS = dict(use_karras_sigmas=True)
EXPONENTIAL = dict(use_exponential_sigmas=True)
BETA = dict(use_beta_sigmas=True)
CURVES = [{}, KARRAS, EXPONENTIAL, BETA]
TRAILING = dict(timestep_spacing="trailing")
LOG_LINEAR = dict(interpolation_type="log_linear")
CONTINUOUS = dict(timestep_type="continuous", prediction_type="v_prediction")
LU = dict(use_lu_lambdas=True)
ZERO_SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
ZERO_SNR_V = dict(ZERO_SNR, prediction_type="v_prediction")
LIMITS = [dict(clip_sample=True), dict(clip_sample=True, clip_sample_range=0.3, prediction_type="v_prediction")]
THRESHOLDS = [dict(thresholding=True, sample_max_value=1.5),
              dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=4.0, prediction_type="sample")]
BETAS = [dict(beta_schedule="linear"), dict(beta_schedule="squaredcos_cap_v2"), dict(num_train_timesteps=100)]


def classes():
    """Names and groups; the cases of each name have a file of their own."""
    d = diffusers
    yield "ddim", (
        matrix(d.DDIMScheduler, clip_sample=False, set_alpha_to_one=False,
               extra=LIMITS + THRESHOLDS + BETAS + [
                   dict(eta=0.5), dict(eta=1.0, prediction_type="v_prediction", set_alpha_to_one=True),
                   dict(eta=0.3, clip_sample=True, timestep_spacing="linspace"), dict(set_alpha_to_one=True),
                   dict(ZERO_SNR_V), dict(ZERO_SNR_V, eta=0.7), dict(ZERO_SNR), dict(ZERO_SNR, prediction_type="sample"),
                   dict(rescale_betas_zero_snr=True), dict(steps_offset=995)]))
    yield "pndm", (
        matrix(d.PNDMScheduler, skip_prk_steps=True, extra=BETAS + [dict(set_alpha_to_one=True)])
        + matrix(d.PNDMScheduler, predictions=PREDICTIONS[:2], skip_prk_steps=False, extra=BETAS, begin_calls=0)[:-len(PUBLISHED)])
    yield "euler", (
        matrix(d.EulerDiscreteScheduler, variants=CURVES,
               extra=BETAS + [dict(final_sigmas_type="sigma_min"), ZERO_SNR, ZERO_SNR_V,
                              dict(KARRAS, sigma_min=0.1, sigma_max=10.0), dict(EXPONENTIAL, sigma_max=20.0),
                              dict(KARRAS, use_exponential_sigmas=True), dict(KARRAS, final_sigmas_type="sigma_min"),
                              dict(s_churn=3.0), dict(s_churn=40.0, prediction_type="v_prediction"),
                              dict(s_churn=2.0, s_tmin=0.5, s_tmax=5.0, s_noise=1.01, **KARRAS),
                              dict(s_churn=2.0, prediction_type="sample"), AYS, AYS_SIGMAS,
                              dict(sigmas=[9.0, 3.5, 1.0, 0.2], prediction_type="v_prediction"),
                              LOG_LINEAR, dict(LOG_LINEAR, prediction_type="v_prediction", **TRAILING),
                              dict(LOG_LINEAR, **KARRAS), dict(LOG_LINEAR, final_sigmas_type="sigma_min", **BETA),
                              dict(LOG_LINEAR, timesteps=AYS["timesteps"]),
                              CONTINUOUS, dict(CONTINUOUS, prediction_type="epsilon"), dict(CONTINUOUS, **TRAILING),
                              dict(CONTINUOUS, sigma_min=0.002, sigma_max=700.0, **KARRAS),
                              dict(CONTINUOUS, **LOG_LINEAR, **EXPONENTIAL), dict(CONTINUOUS, **AYS_SIGMAS),
                              dict(CONTINUOUS, **AYS)]))
    yield "euler_a", matrix(d.EulerAncestralDiscreteScheduler, extra=BETAS + [ZERO_SNR, ZERO_SNR_V])
    yield "lcm", (
        matrix(d.LCMScheduler, spacings=["leading"],
               extra=LIMITS + THRESHOLDS + BETAS[:2] + [
                   dict(original_inference_steps=20), dict(timestep_scaling=0.01), dict(ZERO_SNR_V), dict(ZERO_SNR)]
               + TIMESTEPS))
    yield "ddpm", (
        matrix(d.DDPMScheduler, clip_sample=False,
               extra=LIMITS + THRESHOLDS + BETAS[:2] + [
                   dict(variance_type=v) for v in ("fixed_small_log", "fixed_large")
               ] + [dict(ZERO_SNR_V), dict(ZERO_SNR)] + TIMESTEPS + [dict(variance_type="fixed_large", **AYS)]))
    yield "heun", matrix(d.HeunDiscreteScheduler, variants=CURVES, begin_calls=2, extra=LIMITS + BETAS + [AYS])
    yield "lms", matrix(d.LMSDiscreteScheduler, variants=CURVES, extra=BETAS)
    yield "kdpm2", matrix(d.KDPM2DiscreteScheduler, variants=CURVES, begin_calls=2, extra=BETAS)
    # Not with cosine betas, where the reference's f32 leaves no digits of a difference of squares.
    yield "kdpm2_a", matrix(d.KDPM2AncestralDiscreteScheduler, variants=CURVES, begin_calls=2, extra=BETAS[::2])
    # Imported by its module, because without torchsde, for its Brownian tree, diffusers hides it.
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    yield "dpmpp_sde", matrix(DPMSolverSDEScheduler, variants=CURVES, begin_calls=2, extra=BETAS[::2])
    yield "dpmpp_2s_a", matrix(Dpmpp2sAncestral, variants=CURVES, begin_calls=2, extra=BETAS[::2] + [ZERO_SNR_V])
    multistep = dict(
        variants=CURVES,
        extra=BETAS[:1] + THRESHOLDS + [
            dict(KARRAS, beta_schedule="squaredcos_cap_v2"), dict(solver_type="heun"), dict(solver_order=1),
            dict(lower_order_final=False), dict(euler_at_final=True), dict(final_sigmas_type="sigma_min"),
            dict(final_sigmas_type="sigma_min", euler_at_final=True), dict(KARRAS, final_sigmas_type="sigma_min"),
            dict(final_sigmas_type="sigma_min", lower_order_final=False), ZERO_SNR, ZERO_SNR_V, AYS,
            LU, dict(LU, prediction_type="v_prediction", final_sigmas_type="sigma_min"), dict(LU, **KARRAS),
            dict(LU, **EXPONENTIAL), dict(LU, **BETA), dict(LU, beta_schedule="squaredcos_cap_v2"), dict(LU, **TRAILING)])
    for name, algorithm in dict(dpmpp="dpmsolver++", dpmpp_sde="sde-dpmsolver++").items():
        for order in (2, 3):
            yield f"{name}_{order}m", (
                matrix(d.DPMSolverMultistepScheduler, algorithm_type=algorithm, solver_order=order, **multistep))
    yield "dpmpp_2s", (
        matrix(d.DPMSolverSinglestepScheduler, spacings=["linspace"], variants=CURVES,
               extra=BETAS[:1] + THRESHOLDS + [AYS] + [
                   dict(solver_order=order, algorithm_type=algorithm, solver_type=kind, **more)
                   for order in (1, 2, 3) for algorithm in ("dpmsolver++", "sde-dpmsolver++")
                   for kind in ("midpoint", "heun")
                   for more in ({}, dict(lower_order_final=True), dict(final_sigmas_type="sigma_min"),
                                dict(lower_order_final=True, final_sigmas_type="sigma_min"))]))
    yield "deis", (
        matrix(d.DEISMultistepScheduler, variants=CURVES,
               extra=BETAS[:1] + THRESHOLDS + [
                   dict(solver_order=1), dict(solver_order=3), dict(solver_order=3, **KARRAS),
                   dict(solver_order=3, lower_order_final=False, prediction_type="v_prediction")]))
    # bh1 that ends at sigma zero is NaN in the reference, though its last step is plain; ours takes it.
    unipc = [dict(solver_order=order, solver_type=kind, final_sigmas_type="sigma_min", lower_order_final=lower)
             for order in (1, 2, 3) for kind in ("bh1", "bh2") for lower in (True, False)]
    yield "unipc", (
        matrix(d.UniPCMultistepScheduler, variants=CURVES,
               extra=BETAS[:1] + THRESHOLDS + unipc + [
                   dict(solver_order=3), dict(solver_order=3, **KARRAS), dict(solver_order=1),
                   dict(disable_corrector=[0, 2]), dict(lower_order_final=False),
                   dict(predict_x0=False), dict(predict_x0=False, final_sigmas_type="sigma_min"),
                   dict(predict_x0=False, final_sigmas_type="sigma_min", solver_order=3, solver_type="bh1",
                        prediction_type="v_prediction"),
                   dict(KARRAS, final_sigmas_type="sigma_min"), dict(KARRAS, sigma_min=0.1, sigma_max=12.0),
                   ZERO_SNR, ZERO_SNR_V]))
    yield "tcd", (
        matrix(d.TCDScheduler, spacings=["leading"],
               extra=LIMITS + BETAS[:2] + [
                   dict(eta=0.0), dict(eta=0.55), dict(eta=1.0, prediction_type="v_prediction"),
                   dict(original_inference_steps=20), dict(ZERO_SNR_V), dict(ZERO_SNR)]
               + TIMESTEPS + [dict(eta=0.8, **AYS)]))


def tables():
    """The tables that levels come from, and a checksum of the timesteps of every number of steps."""
    tensors = {}
    for name, keys in dict(
        scaled_linear=dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        linear=dict(), latent_linear=dict(beta_start=0.00085, beta_end=0.012), cosine=dict(beta_schedule="squaredcos_cap_v2"),
        zero_snr=dict(**LATENT, rescale_betas_zero_snr=True), short=dict(num_train_timesteps=37),
        trained=dict(trained_betas=[0.01 + 0.001 * i for i in range(50)], num_train_timesteps=50),
    ).items():
        tensors[f"alphas.{name}"] = diffusers.DDIMScheduler(**keys).alphas_cumprod
    for grid, cls in dict(integer=diffusers.DDIMScheduler, fractional=diffusers.EulerDiscreteScheduler,
                          one_more=diffusers.DPMSolverMultistepScheduler).items():
        for spacing in SPACINGS:
            sums = []
            for n in range(1, 1001 if grid != "one_more" else 1000):
                scheduler = cls(**LATENT, timestep_spacing=spacing)
                scheduler.set_timesteps(n)
                # For some n, trailing has a surplus timestep -1: a rounding slip of the reference.
                timesteps = scheduler.timesteps.double()[:n]
                sums.append((timesteps * torch.arange(1, n + 1)).sum())
            tensors[f"timesteps.{grid}.{spacing}"] = torch.stack(sums)
    return tensors


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    metadata = dict(torch=torch.__version__, diffusers=diffusers.__version__, numpy=np.__version__)
    noise = Noise(112)
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    save_file(dict(tables(), clean=clean, noise=noise.tensors), OUT / "common.safetensors", metadata)
    only = sys.argv[1:]
    cases = json.loads((OUT / "cases.json").read_text()) if only else {}
    for name, groups in classes():
        if only and name not in only:
            continue
        tensors, cases[name] = {}, []
        for index, (cls, entry) in enumerate(groups):
            for number, case in enumerate(entry["runs"]):
                try:
                    module_of(cls).torch = torch
                    scheduler = cls.from_config(entry["file"])
                    scheduler, calls, x = run(scheduler, case["steps"], case.get("begin", 0), entry["arguments"], clean, noise)
                    if not x.isfinite().all():
                        raise ValueError("the result is not finite")
                except Exception as error:
                    case["refused"] = f"{type(error).__name__}: {error}".split("\n")[0][:80]
                    continue
                case.update(calls=calls, draws=noise.used)
                key = f"{index}.{number}"
                tensors[f"{key}.x"] = x
                tensors[f"{key}.timesteps"] = scheduler.timesteps.float()
                if hasattr(scheduler, "sigmas"):
                    tensors[f"{key}.sigmas"] = call_sigmas(scheduler).float()
            cases[name].append(entry)
        save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / f"{name}.safetensors", metadata)
    lines = {name: ",\n".join(json.dumps(entry) for entry in groups) for name, groups in cases.items()}
    text = ",\n".join(f'"{name}": [\n{groups}\n]' for name, groups in lines.items())
    (OUT / "cases.json").write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
