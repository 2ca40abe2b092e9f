"""Writes crates/core/tests/data/functional.txt: what torch.nn.functional computes, with gradients,
where conventions differ between libraries (kinks, weights, ignored targets, masks, borders, sizes).

Inputs are not stored: both sides make them with `numbers`. One line per case:
name; results; gradient of the first input; of the second; ... in float64, 12 digits.
Run: python oracles/core_goldens.py   (needs torch). Neighbour: crates/core/tests/suite/functional.rs.
"""

import pathlib

import torch
import torch.nn.functional as F

OUT = pathlib.Path(__file__).parent.parent / "crates/core/tests/data/functional.txt"


def numbers(shape, seed, low=-1.0, high=1.0):
    n = 1
    for d in shape:
        n *= d
    unit = [((i * 7919 + seed * 104729) % 1009) / 1009 for i in range(n)]
    values = [low + (high - low) * u for u in unit]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def integers(shape, seed, low, high):
    n = 1
    for d in shape:
        n *= d
    return torch.tensor([low + (i * 7919 + seed * 104729) % 1009 % (high - low) for i in range(n)]).reshape(shape)


lines = []


def case(name, function, *inputs):
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    grads = torch.autograd.grad(out, leaves, numbers(out.shape, 99))
    parts = [" ".join(f"{v:.12g}" for v in t.detach().reshape(-1).tolist()) for t in (out, *grads)]
    lines.append("; ".join([name, *parts]))


n = numbers
kinks = torch.tensor([-4.0, -3, -2.5, -1, -0.5, 0, 0.5, 1, 2.5, 3, 4, 6, 7], dtype=torch.float64)
for name, f in {
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softsign": F.softsign,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: F.elu(x, 1.5),
    "celu": lambda x: F.celu(x, 1.5),
    "softplus": lambda x: F.softplus(x, 2.0, 5.0),
    "hardtanh": lambda x: F.hardtanh(x, -1.0, 2.5),
}.items():
    case(name, f, kinks)

targets = integers([4], 3, 0, 3)
targets[1] = -100
planes = integers([2, 2], 4, 0, 3)
weight = n([3], 5, 0.5, 2.0)
for reduction in ("none", "mean", "sum"):
    case(
        f"cross_entropy_smooth_weighted_{reduction}",
        lambda x: F.cross_entropy(x, targets, weight, label_smoothing=0.2, reduction=reduction),
        n([4, 3], 1),
    )
    case(
        f"cross_entropy_planes_{reduction}",
        lambda x: F.cross_entropy(x, planes, ignore_index=1, label_smoothing=0.1, reduction=reduction),
        n([2, 3, 2], 1),
    )
    case(
        f"cross_entropy_probabilities_{reduction}",
        lambda x, t: F.cross_entropy(x, t, weight, label_smoothing=0.1, reduction=reduction),
        n([2, 3, 2], 1),
        n([2, 3, 2], 2, 0.0, 1.0),
    )
    case(
        f"nll_loss_weighted_{reduction}",
        lambda x: F.nll_loss(x, targets, weight, reduction=reduction),
        n([4, 3], 1),
    )

saturated = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.3], dtype=torch.float64)
wanted = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.6], dtype=torch.float64)
case("binary_cross_entropy_saturated", lambda p: F.binary_cross_entropy(p, wanted, reduction="none"), saturated)
case(
    "binary_cross_entropy_with_logits",
    lambda x, t: F.binary_cross_entropy_with_logits(
        x, t, weight, pos_weight=n([3], 6, 0.5, 3.0), reduction="mean"
    ),
    n([4, 3], 1, -50.0, 50.0),
    n([4, 3], 2, 0.0, 1.0),
)
a, b = n([3, 4], 1), n([3, 4], 2)
tied = a.clone()
tied[0] = b[0]
tied[1] = b[1] + 0.5
for reduction in ("none", "mean", "sum"):
    case(f"l1_loss_{reduction}", lambda x, t: F.l1_loss(x, t, reduction=reduction), tied, b)
    case(f"smooth_l1_loss_{reduction}", lambda x, t: F.smooth_l1_loss(x, t, beta=0.5, reduction=reduction), tied, b)
    case(f"huber_loss_{reduction}", lambda x, t: F.huber_loss(x, t, delta=0.5, reduction=reduction), tied, b)
positive = n([3, 4], 7, 0.1, 3.0)
case("kl_div_batchmean", lambda x, t: F.kl_div(x, t, reduction="batchmean"), a, positive)
case("kl_div_log_target", lambda x, t: F.kl_div(x, t, reduction="mean", log_target=True), a, b)
case("poisson_nll_loss_full", lambda x: F.poisson_nll_loss(x, positive, log_input=True, full=True), a)
case(
    "poisson_nll_loss_plain",
    lambda x: F.poisson_nll_loss(x, positive, log_input=False, eps=1e-3),
    positive + 0.5,
)
case(
    "gaussian_nll_loss_cut",
    lambda x, t, v: F.gaussian_nll_loss(x, t, v, full=True, eps=0.5),
    a,
    b,
    n([3, 1], 8, 0.0, 2.0),
)
signs = integers([3, 4], 9, 0, 2) * 2 - 1
case("hinge_embedding_loss", lambda x: F.hinge_embedding_loss(x, signs.double(), margin=0.25), a)
case("margin_ranking_loss", lambda x, y: F.margin_ranking_loss(x, y, signs.double(), margin=0.1), a, b)
case(
    "cosine_embedding_loss",
    lambda x, y: F.cosine_embedding_loss(x, y, signs[:, 0].double(), margin=-0.9, reduction="none"),
    a,
    b,
)
case(
    "triplet_margin_loss_swap",
    lambda x, y, z: F.triplet_margin_loss(x, y, z, margin=1.5, p=3.0, swap=True, reduction="none"),
    a,
    b,
    n([3, 4], 10),
)

q, k, v = n([2, 4, 3, 2], 1), n([2, 2, 5, 2], 2), n([2, 2, 5, 3], 3)
case("attention_grouped", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), q, k, v)
case(
    "attention_causal",
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True),
    q,
    k,
    v,
)
seen = integers([3, 5], 4, 0, 2).bool()
seen[1] = False
case(
    "attention_masked",
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True),
    q,
    k,
    v,
)
case(
    "attention_float_mask",
    lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m, enable_gqa=True),
    q,
    k,
    v,
    n([3, 5], 6),
)

case("layer_norm", lambda x, w, b: F.layer_norm(x, [2, 3], w, b, 1e-3), n([4, 2, 3], 1), n([2, 3], 2), n([2, 3], 3))
case("rms_norm", lambda x, w: F.rms_norm(x, [3], w, 1e-3), n([4, 3], 1), n([3], 2))
case(
    "batch_norm",
    lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, 1e-3),
    n([3, 2, 2], 1),
    n([2], 2),
    n([2], 3),
)
case("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b, 1e-3), n([2, 4, 2], 1), n([4], 2), n([4], 3))
case("instance_norm", lambda x, w: F.instance_norm(x, weight=w, eps=1e-3), n([2, 2, 3], 1), n([2], 2))
case("local_response_norm", lambda x: F.local_response_norm(x, 4, 0.5, 0.75, 2.0), n([2, 5, 2], 1))

case(
    "conv_transpose_far_output_padding",
    lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=(2, 3), dilation=4),
    n([1, 2, 3, 3], 1),
    n([2, 2, 2, 3], 2),
    n([2], 3),
)
case("max_pool_ceil", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), n([1, 2, 6, 5], 1))
case(
    "avg_pool_ceil",
    lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    n([1, 2, 6, 5], 1),
)
case("adaptive_avg_pool", lambda x: F.adaptive_avg_pool2d(x, (2, 4)), n([1, 1, 5, 3], 1))
case("bilinear", lambda x, y, w, b: F.bilinear(x, y, w, b), n([3, 2], 1), n([3, 4], 2), n([5, 2, 4], 3), n([5], 4))
case("prelu", lambda x, w: F.prelu(x, w), n([2, 3, 2], 1), n([3], 2))
case("glu", lambda x: F.glu(x, 1), n([2, 4, 2], 1))

image = n([1, 2, 4, 3], 1)
for size in ((7, 2), (3, 8)):
    label = f"{size[0]}x{size[1]}"
    case(f"nearest_{label}", lambda x: F.interpolate(x, size, mode="nearest"), image)
    case(f"nearest_exact_{label}", lambda x: F.interpolate(x, size, mode="nearest-exact"), image)
    for corners in (False, True):
        aligned = "_aligned" if corners else ""
        case(f"linear_{label}{aligned}", lambda x: F.interpolate(x, size, mode="bilinear", align_corners=corners), image)
        case(f"cubic_{label}{aligned}", lambda x: F.interpolate(x, size, mode="bicubic", align_corners=corners), image)
case("nearest_scaled", lambda x: F.interpolate(x, scale_factor=1.7, mode="nearest"), image)
case("linear_scaled", lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), image)
case("cubic_scaled", lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic"), image)

OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_text("\n".join(lines) + "\n")
print(len(lines), "cases")
