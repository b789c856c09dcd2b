import pytest
import torch

from lightning_modules.functional.logprobs import token_statistics


def reference(hidden, weight, targets, temperature):
    logprobs = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy, logprobs.argmax(dim=-1) == targets


def test_hand_derived_values():
    # Logits (0, ln 3): probabilities 1/4 and 3/4; entropy ln 4 - 3/4 ln 3 = 0.562335.
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [1.0986123]])
    result = token_statistics(hidden, weight, torch.tensor([0, 1]))
    torch.testing.assert_close(result.logprobs, torch.tensor([0.25, 0.75]).log())
    torch.testing.assert_close(result.entropy, torch.tensor([0.562335, 0.562335]))
    assert result.is_top.tolist() == [False, True]


@pytest.mark.parametrize("chunk_size", [1, 5, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_log_softmax(chunk_size, temperature):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(13, 8, generator=generator), torch.randn(29, 8, generator=generator)]
    targets = torch.randint(0, 29, (13,), generator=generator)
    upstream = torch.randn(13, generator=generator, dtype=torch.float64)
    outcomes = []
    for function in (reference, token_statistics):
        hidden, weight = (x.double().requires_grad_() for x in inputs)
        extra = {"chunk_size": chunk_size} if function is token_statistics else {}
        logprobs, entropy, is_top = function(hidden, weight, targets, temperature=temperature, **extra)
        (logprobs * upstream).sum().backward()
        outcomes.append([logprobs.detach(), entropy.detach(), is_top, hidden.grad, weight.grad])
    for expected, actual in zip(*outcomes, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_states_give_float32_results():
    hidden = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(16, 8, dtype=torch.bfloat16, requires_grad=True)
    result = token_statistics(hidden, weight, torch.arange(4))
    result.logprobs.sum().backward()
    assert result.logprobs.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_only_the_wanted_gradient_is_computed():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(16, 8)
    token_statistics(hidden, weight, torch.arange(4)).logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_autocast_with_float32_weights_keeps_float32_gradients():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=generator).requires_grad_()
    weight = torch.randn(16, 8, generator=generator).requires_grad_()
    exact = token_statistics(hidden, weight, torch.arange(6)).logprobs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = token_statistics(hidden, weight, torch.arange(6), chunk_size=4)
    result.logprobs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == result.logprobs.dtype == torch.float32
    torch.testing.assert_close(result.logprobs, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(result.logprobs, exact)  # the products did run in bfloat16
