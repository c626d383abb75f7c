"""The contracts of encoder, field and preconditioning; the loss; samples by seed."""

import numpy as np
import pytest
import torch

from synthnb.data.feed import ClipData, Clips
from synthnb.data.shards import open_split
from synthnb.features import coarse
from synthnb.models.checkpoint import load_model
from synthnb.models.encoders import ENCODERS
from synthnb.models.fields import FIELDS
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.models.precondition import Precondition


@pytest.fixture(scope="module")
def batch(short_dataset, short_space):
    return next(iter(Clips(short_dataset / "train.h5", short_space, 8, endless=False)))


@pytest.fixture
def heard(model, batch):
    """What the field is told about `batch`."""
    with torch.no_grad():
        return condition(model, batch)


@pytest.fixture(scope="module")
def mels(short_dataset):
    with open_split(short_dataset / "train.h5") as file:
        return torch.from_numpy(file["mel_spec"][:2]).float()


@pytest.fixture
def model(short_dataset, short_space):
    torch.manual_seed(0)
    data = ClipData(short_dataset, 8)
    return FlowModel(
        short_space, ModelSettings(sound=32, dim=64, hidden=64, depth=1), data.mean, data.std
    ).eval()


@pytest.fixture
def calls(model, monkeypatch):
    """`(t, rows)` of every evaluation of the vector field."""
    seen, field = [], model.field.forward

    def spy(x, t, condition):
        seen.append((round(t[0].item(), 4), len(x)))
        return field(x, t, condition)

    monkeypatch.setattr(model.field, "forward", spy)
    return seen


def fixed_loss(model, batch, **settings):
    with torch.no_grad():
        return np.mean([loss(model, batch, i, **settings).item() for i in range(10)])


def loss(model, batch, seed, **settings):
    return model.loss(batch, draws=4, **settings, generator=torch.Generator().manual_seed(seed))


def condition(model, batch):
    """What the field is told about `batch`."""
    tokens = model.encode({"mel": batch["mel"]}, {"mel": batch["source_mel"]}, batch["known"])
    return model.prepare(tokens, 2 * batch["source"] - 1, batch["known"])


@pytest.mark.parametrize("known", [0.0, 1.0])
def test_a_few_clips_are_learnt_by_heart(model, batch, known):
    batch = batch | {"known": torch.full((8, 1), known)}
    before = fixed_loss(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, betas=(0.9, 0.98))
    for i in range(20):
        optimizer.zero_grad()
        loss(model, batch, i, condition_dropout=0.1).backward()
        optimizer.step()
    after = fixed_loss(model, batch)
    # The linear guess, with or without the guess that a source is kept; a field of 0 would leave 1.3.
    assert (0.05 < before < 0.3) if known else (0.4 < before < 0.8)
    assert after < 0.75 * before


def test_every_weight_learns(model, batch):
    loss(model, batch, 0, condition_dropout=0.5).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_the_loss_is_seeded(model, batch):
    one, again, other = (loss(model, batch, seed).item() for seed in (3, 3, 4))
    assert one == again != other


def test_a_hidden_sound_has_no_influence(model, batch):
    other = batch | {"mel": batch["mel"].flip(0)}
    assert fixed_loss(model, batch, condition_dropout=1.0) == fixed_loss(model, other, condition_dropout=1.0)
    assert fixed_loss(model, batch) != fixed_loss(model, other)


def test_a_hidden_source_has_no_influence(model, batch):
    other = batch | {"source": batch["source"].flip(0), "source_mel": batch["source_mel"].flip(0)}
    assert fixed_loss(model, batch, source_dropout=1.0) == fixed_loss(model, other, source_dropout=1.0)
    assert fixed_loss(model, batch) != fixed_loss(model, other)


def test_columns_weigh_as_much_as_they_are_told(model, batch, short_space):
    pitch, rest = torch.zeros(2, short_space.width)
    pitch[short_space.columns["pitch"]] = short_space.width
    whole = batch | {"quantiles": batch["quantiles"].clone()}
    whole["quantiles"][:, short_space.columns["pitch"]] = 5.0
    assert fixed_loss(model, whole, weights=pitch) > 10 * fixed_loss(model, batch, weights=pitch)
    assert fixed_loss(model, whole, weights=rest) == 0


def test_rows_of_a_batch_do_not_mix(model, batch, heard, short_space):
    generator = torch.Generator().manual_seed(2)
    x, t = torch.randn(8, short_space.width, generator=generator), torch.rand(8, generator=generator)
    with torch.no_grad():
        velocity = model.velocity(x, t, heard)
        assert velocity.shape == x.shape
        for rows in ([5], [0, 3]):
            part = {name: values[rows] for name, values in batch.items()}
            alone = model.velocity(x[rows], t[rows], condition(model, part))
            torch.testing.assert_close(alone, velocity[rows], rtol=1e-4, atol=1e-5)


def test_samples_are_vectors_of_the_space_and_follow_the_seed(model, mels, short_space):
    state = torch.get_rng_state()
    drawn = model.sample(mels[0], 6, steps=3)
    assert drawn.shape == (6, short_space.width) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() <= 1
    for vector in drawn:
        patch, note = short_space.decode(vector)
        short_space.check(patch)
        short_space.encode(patch, note)
    np.testing.assert_array_equal(drawn, model.sample(mels[0], 6, steps=3))
    assert (drawn != model.sample(mels[0], 6, steps=3, seed=1)).any(axis=1).all()
    assert (drawn != model.sample(mels[1], 6, steps=3)).any()
    assert (torch.get_rng_state() == state).all()


def test_a_guidance_of_one_is_the_conditional_flow(model, mels, calls, short_space):
    with torch.no_grad():
        x = torch.randn(4, short_space.width, generator=torch.Generator().manual_seed(7))
        x = 0.5 * x
        mel, nothing = coarse(mels[:1]).expand(4, -1, -1, -1), torch.zeros(4, 1)
        tokens = model.encode({"mel": mel}, {"mel": mel}, nothing)
        heard = model.prepare(tokens, torch.zeros(4, short_space.width), nothing)
        for step in range(5):
            x = x + model.velocity(x, torch.full((4,), step / 5), heard) / 5
    expected = ((x + 1) / 2).clamp(0, 1).numpy()
    calls.clear()
    drawn = model.sample(mels[0], 4, steps=5, guidance=1.0, temperature=0.5, seed=7)
    assert calls == [(0.0, 4), (0.2, 4), (0.4, 4), (0.6, 4), (0.8, 4)]
    categorical = [short_space.columns[p.name] for p in short_space if p.kind == "categorical"]
    for block in categorical:
        np.testing.assert_allclose(drawn[:, block], expected[:, block], atol=1e-4)
    away = np.abs(drawn - short_space.from_quantiles(expected)).max(axis=0) > 1e-3
    assert away.mean() < 0.02  # a value on the edge between two steps may fall on either side


def test_guidance_acts_inside_its_interval_only(model, mels, calls):
    mel = mels[0]
    plain = model.sample(mel, 3, steps=4, guidance=1.0)
    np.testing.assert_array_equal(model.sample(mel, 3, steps=4, guidance=5.0, interval=(2.0, 3.0)), plain)
    calls.clear()
    guided = model.sample(mel, 3, steps=4, guidance=5.0, interval=(0.2, 0.6))
    assert calls == [(0.0, 3), (0.25, 6), (0.5, 6), (0.75, 3)]  # both halves in one call
    assert (guided != plain).any()


def test_midpoint_looks_half_a_step_ahead(model, mels, calls):
    euler = model.sample(mels[0], 3, steps=2, guidance=1.0)
    calls.clear()
    midpoint = model.sample(mels[0], 3, steps=2, guidance=1.0, midpoint=True)
    assert calls == [(0.0, 3), (0.25, 3), (0.5, 3), (0.75, 3)]
    assert (euler != midpoint).any()


def test_a_sound_is_encoded_once(model, mels, monkeypatch):
    rows, encode = [], model.encoder.forward
    monkeypatch.setattr(
        model.encoder, "forward", lambda *heard: (rows.append(len(heard[2])), encode(*heard))[1]
    )
    model.sample(mels[0], 5, steps=3)
    assert rows == [1]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_hears_the_target_and_a_source_that_is_known(name):
    torch.manual_seed(0)
    encoder = ENCODERS[name]({"mel": (2, 64, 50)}, 24).eval()
    target, source, other = ({need: torch.randn(3, 2, 64, 50) for need in encoder.needs} for _ in range(3))
    known = torch.tensor([[0.0], [1.0], [1.0]])
    tokens = encoder(target, source, known)
    assert tokens.ndim == 3 and tokens.shape[0] == 3 and tokens.shape[2] == 24
    changed = (encoder(target, other, known) - tokens).abs().amax(dim=(1, 2))
    assert changed[0] == 0 and (changed[1:] > 0).all()
    assert ((encoder(other, source, known) - tokens).abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_prepares_what_does_not_change_once(name, short_space):
    torch.manual_seed(0)
    field = FIELDS[name](short_space, 24, 32, 48, 2)
    tokens, source, known = torch.randn(2, 5, 24), torch.randn(2, short_space.width), torch.ones(2, 1)
    condition = field.prepare(tokens, source, known)
    assert all(len(part) == 2 for part in condition)  # so that it can be repeated for many candidates
    x, t = torch.randn(2, short_space.width), torch.tensor([0.1, 0.7])
    velocity, odds = field(x, t, condition)
    assert velocity.shape == odds.shape == x.shape
    longer = field(
        x.repeat_interleave(3, 0), t.repeat(3, 1).T.flatten(), [c.repeat_interleave(3, 0) for c in condition]
    )
    torch.testing.assert_close(longer[0][::3], velocity)
    assert (field(x, t, field.prepare(tokens.flip(0), source, known))[0] != velocity).any()


class Constant(torch.nn.Module):
    """A field that always says the same."""

    def __init__(self, velocity, odds):
        super().__init__()
        self.says = velocity, odds

    def prepare(self, tokens, source, known):
        return []

    def forward(self, x, t, condition):
        return tuple(torch.full_like(x, value) for value in self.says)


def test_without_a_field_the_guess_is_the_best_linear_one(short_space):
    """Of Gaussians with the prior's moments: the regression of x1 - x0 on x."""
    wrap, field = Precondition(short_space), Constant(0.0, 0.0)
    generator, rows, width = torch.Generator().manual_seed(0), 8000, short_space.width
    x1 = wrap.mean + wrap.variance.sqrt() * torch.randn(rows, width, generator=generator)
    x0, t = torch.randn(rows, width, generator=generator), torch.full((rows,), 0.6)
    x = torch.lerp(x0, x1, t[:, None])
    nothing = wrap.prepare(field, torch.zeros(rows, 1, 4), torch.zeros(rows, width), torch.zeros(rows, 1))
    gap = x1 - x0 - wrap(field, x, t, nothing)
    assert gap.mean(dim=0).abs().max() < 0.07
    assert (gap * (x - x.mean(dim=0))).mean(dim=0).abs().max() < 0.07  # nothing linear is left
    unit = gap.std(dim=0)
    rest = wrap(Constant(1.0, 0.0), x, t, nothing) - wrap(field, x, t, nothing)
    torch.testing.assert_close(rest[0], unit, rtol=0.05, atol=0.01)


def test_what_is_surely_kept_moves_to_the_source(short_space):
    wrap, width = Precondition(short_space), short_space.width
    source, known = torch.rand(2, width) * 2 - 1, torch.tensor([[1.0], [0.0]])
    kept, t = Constant(0.0, 1000.0), torch.full((2,), 0.25)
    x = torch.randn(2, width) * 0.1 + source * 0.25
    velocity = wrap(kept, x, t, wrap.prepare(kept, torch.zeros(2, 1, 4), source, known))
    torch.testing.assert_close(x[0] + 0.75 * velocity[0], source[0])
    assert (x[1] + 0.75 * velocity[1] - source[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("depth", 0, "depth is 0; a whole number above 0"),
        ("dim", 2.5, "dim is 2.5; a whole number"),
        ("field", "unet", "no field 'unet'; there are mlp"),
        ("encoder", "ear", "no encoder 'ear'; there are mel"),
    ],
)
def test_impossible_settings_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        ModelSettings(**{name: value})


@pytest.mark.parametrize(
    "name, noise, edits",
    [
        ("dexed", [-2.9884, 1.0568, -2.4162, -1.6779], [-2.2555, -2.2062, -2.2557]),
        ("surge_human", [0.0764, -1.0893, -1.5399, 0.1548], [-1.7117, -1.709, -1.7114]),
    ],
)
def test_the_checkpoints_that_come_with_the_package_sample_as_they_did(name, noise, edits):
    """Numbers from before the model was divided into encoder, field and preconditioning."""
    model = load_model(name, "cpu")
    channels = model.settings.channels
    place = torch.arange(channels * 128 * 401, dtype=torch.float64).reshape(channels, 128, 401)
    mel = (-40 + 40 * torch.sin(place * 0.37) * torch.cos(place / 401)).float()
    note = model.space.sample(np.random.default_rng(0))[1]
    source = model.space.encode(model.space.default_patch, note)
    drawn = model.sample(mel, 4, steps=8, guidance=2.0)
    edited = model.sample(mel, 3, (mel.flip(-1)[None], source[None]), steps=8, guidance=2.0, seed=1)
    along = np.cos(np.arange(model.space.width))
    np.testing.assert_allclose(drawn @ along, noise, atol=0.02)
    np.testing.assert_allclose(edited @ along, edits, atol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_draws_what_the_cpu_draws(model, mels, short_space):
    source = short_space.encode(*short_space.sample(np.random.default_rng(0)))
    sources = mels[1:], source[None]
    drawn = [
        short_space.to_quantiles(model.to(on).sample(mels[0], 4, sources, steps=4)) for on in ("cpu", "cuda")
    ]
    assert np.mean(np.abs(drawn[0] - drawn[1]) > 0.02) < 0.02
