import torch
from hypothesis import given
from hypothesis import strategies as st

from model.losses import hinge_d, hinge_g

scores = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8)


@given(scores, scores)
def test_hinge_is_the_papers_sum(real: list[float], fake: list[float]) -> None:
    on_real = sum(max(0.0, 1 - s) for s in real) / len(real)
    on_fake = sum(max(0.0, 1 + s) for s in fake) / len(fake)
    torch.testing.assert_close(hinge_d(torch.tensor(real), torch.tensor(fake)), torch.tensor(on_real + on_fake))
    torch.testing.assert_close(hinge_g(torch.tensor(fake)), torch.tensor(-sum(fake) / len(fake)))


def test_d_learns_only_from_scores_inside_the_margin() -> None:
    real, fake = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True), torch.tensor([-1.5, 0.0, 2.0], requires_grad=True)
    hinge_d(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.tensor([-1.0, -1.0, 0.0]) / 3)
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 1.0, 1.0]) / 3)
