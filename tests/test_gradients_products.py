import numpy as np
import pytest

from riq_cli.statistics.autodiff.products import RULES
from riq_cli.statistics.autodiff.rule import NoRuleError
from tests.gradients import newer_kernels
from tests.gradients_windows import check, normal, operation

SHAPES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 6, 3, 4), (4, 5)),
    ((2, 6, 3, 4), (1, 1, 4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (6, 4, 5)),
    ((6, 3, 4), (2, 1, 4, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (1, 4, 5)),
    ((4,), (4, 5)),
    ((4,), (2, 4, 5)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (4,)),
    ((1, 4), (4, 1)),
    ((1, 1, 4), (4, 5)),
]


@pytest.mark.parametrize("left,right", SHAPES)
def test_matmul(left, right):
    check(RULES, "MatMul", [normal(*left), normal(*right)], wanted=(0, 1))


def test_matmul_double():
    check(RULES, "MatMul", [normal(3, 4).astype(np.float64), normal(4, 5).astype(np.float64)], wanted=(0, 1))


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("scales", [{}, {"alpha": 0.5, "beta": -2.0}])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5), "left out"])
def test_gemm(turned, scales, bias):
    left = normal(4, 3) if turned[0] else normal(3, 4)
    right = normal(5, 4) if turned[1] else normal(4, 5)
    inputs = [left, right]
    if bias is not None:
        inputs.append(None if bias == "left out" else normal(*bias))
    wanted = (0, 1) if bias in (None, "left out") else (0, 1, 2)
    check(RULES, "Gemm", inputs, {"transA": turned[0], "transB": turned[1], **scales}, wanted)


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("batch", [((), ()), ((2,), ()), ((), (2,)), ((2, 3), (3,)), ((2, 3), (2, 3))])
def test_fused_matmul(turned, batch):
    left = normal(*batch[0], *((4, 3) if turned[0] else (3, 4)))
    right = normal(*batch[1], *((5, 4) if turned[1] else (4, 5)))
    attributes = {"transA": turned[0], "transB": turned[1], "alpha": 0.25}
    check(RULES, "com.microsoft:FusedMatMul", [left, right], attributes, (0, 1))


def test_fused_matmul_unknown():
    inputs = [normal(2, 3, 4), normal(2, 4, 5)]
    with pytest.raises(NoRuleError):
        RULES["com.microsoft:FusedMatMul"](
            operation("com.microsoft:FusedMatMul", inputs, {"transBatchA": 1}, 1),
            inputs,
            [normal(3, 2, 3, 5)],
            [True, False],
        )


@pytest.mark.parametrize(
    "equation,shapes",
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("ij,kj->ki", [(3, 4), (5, 4)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bhij,bhjd->bihd", [(2, 3, 4, 6), (2, 3, 6, 5)]),
        ("bthd,bshd->bhts", [(2, 4, 3, 5), (2, 6, 3, 5)]),
        ("b i d , h d -> b h i", [(2, 4, 5), (3, 5)]),
        ("i,j->ij", [(3,), (4,)]),
        ("i,i->", [(3,), (3,)]),
        ("ij,ij->ij", [(3, 4), (3, 4)]),
        ("ij,k->jk", [(3, 4), (5,)]),
        ("ijk,il->lj", [(3, 4, 5), (3, 2)]),
        ("nctkv,kvw->nctw", [(2, 3, 4, 2, 5), (2, 5, 6)]),
        ("Bij,jk->Bik", [(2, 3, 4), (4, 5)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("...ij,jk->...ik", [(6, 2, 3, 4), (4, 5)]),
        ("ij->ji", [(3, 4)]),
        pytest.param("ijk->kj", [(3, 4, 5)], marks=newer_kernels),
    ],
)
def test_einsum(equation, shapes):
    check(RULES, "Einsum", [normal(*shape) for shape in shapes], {"equation": equation}, range(len(shapes)))


@pytest.mark.parametrize(
    "equation,shapes,out",
    [
        ("ii->i", [(3, 3)], (3,)),
        ("ij,jk", [(3, 4), (4, 5)], (3, 5)),
        ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 2)], (3, 2)),
        ("...ij,...jk->...ik", [(1, 3, 4), (2, 4, 5)], (2, 3, 5)),
    ],
)
def test_einsum_unknown(equation, shapes, out):
    inputs = [normal(*shape) for shape in shapes]
    with pytest.raises(NoRuleError):
        RULES["Einsum"](
            operation("Einsum", inputs, {"equation": equation}, 17), inputs, [normal(2, *out)], [True] * len(inputs)
        )


def test_half_precision_and_repeated_gradients():
    left, right = normal(3, 4).astype(np.float16), normal(4, 5).astype(np.float16)
    gradient = np.broadcast_to(np.float32(0.5), (2, 3, 5))
    found = RULES["MatMul"](operation("MatMul", [left, right], {}, 17), [left, right], [gradient], [True, True])
    assert [value.dtype for value in found] == [np.float32, np.float32]
    np.testing.assert_allclose(found[0][1], gradient[1] @ right.astype(np.float32).T, rtol=1e-6)
