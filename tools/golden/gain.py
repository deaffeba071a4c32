"""Random weights under which every tensor matters, and the proof that it does.

With the default initialisation a third of a tiny network's tensors (norms at 1 and 0, small convolutions behind a
residual path) do not move the output, so a loader that drops them passes. Here weights are N(0, 1/sqrt(fan_in)), biases
N(0, 0.2) and norm weights 1 + N(0, 0.2). A larger gain drowns the biases in the residual stream and amplifies rounding.
"""

import copy
import zlib

from common import randn, relative_error

# A constant added to every key cancels in the softmax.
NO_INFLUENCE = ("k_proj.bias", "to_k.bias", "key.bias")

# Largest error of a fixture against the same computation in f64; the tests allow 1e-5.
ROUNDING = 2e-6

# Models whose first draw amplifies rounding more than that, here or over a whole run, and the draw that does not.
DRAWS = {
    "sd15/unet": 2,
    "sd15-inpaint/unet": 3,
    "sd2-inpaint/unet": 1,
    "lcm/unet": 1,
    "sdxl/unet": 2,
    "sdxl-refiner/unet": 2,
    "unets/class-projection": 1,
    "unets/reverse-depth": 1,
}


def initialise(model, name):
    """Fills every parameter; returns the model. Networks of one shape get the same weights: git stores them once."""
    shapes = [(key, tuple(parameter.shape)) for key, parameter in model.named_parameters()]
    seed = zlib.crc32(repr(shapes).encode()) + DRAWS.get(name, 0)
    for key, parameter in model.named_parameters():
        noise = randn(f"{seed}/{key}", *parameter.shape)
        if parameter.dim() >= 2:
            noise *= parameter[0].numel() ** -0.5
        elif key.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise *= 0.2
        parameter.copy_(noise)
    return model.eval()


def scale_output(layer, output, target):
    """Scales the last layer, which makes `output`, so that it will have the standard deviation `target`."""
    layer.weight *= target / output.std()
    layer.bias *= target / output.std()


def check(model, forward, name):
    """Asserts that dropping any tensor moves `forward(model)` by more than 1e-4.

    `forward` maps a model to a list of tensors, and follows the model's dtype.
    """
    reference = forward(model)
    weakest, key = min(
        (influence(key, parameter, lambda: forward(model), reference), key)
        for key, parameter in model.named_parameters()
        if not key.endswith(NO_INFLUENCE)
    )
    print(f"  {name}: weakest tensor {key} {weakest:.1e}", flush=True)
    assert weakest > 1e-4, f"{name}: {key} does not matter"
    check_rounding(model, forward, name)


def check_rounding(model, forward, name):
    """Asserts that f32 rounding moves `forward(model)` by far less than the tests allow."""
    exact = forward(copy.deepcopy(model).double())
    error = max(relative_error(a, b) for a, b in zip(forward(model), exact))
    print(f"  {name}: f64 error {error:.1e}", flush=True)
    assert error < ROUNDING, f"{name}: too sensitive to rounding"


def influence(key, parameter, forward, reference):
    """How far the outputs move when one tensor is as if never loaded: norm weights one, anything else zero."""
    original = parameter.clone()
    parameter.fill_(1.0 if parameter.dim() == 1 and key.endswith("weight") else 0.0)
    moved = max(relative_error(a, b) for a, b in zip(forward(), reference))
    parameter.copy_(original)
    return moved
