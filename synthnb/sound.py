"""Recordings: reading, checking, trimming, measuring and writing them.

The one place that says what a usable sound is. In memory a sound is float32, shape (channels, samples), at
`SAMPLE_RATE`, with one channel or two. Full scale is 1.0, but renders may exceed it and nothing here clips.

    audio = read_sound("bass.mp3")      # any rate, any channel count; raises UnusableSound with the reason
    target = prepare(audio, 4.0)        # starts at the onset, lasts exactly 4 s
    loudness(target)                    # LUFS
"""

import functools
import os
from pathlib import Path

import numpy as np

from synthnb.containers import CONTAINERS, Memory, defect, mend

SAMPLE_RATE = 44_100
LONGEST = 60.0  #: seconds of a file that are read; what comes later is ignored
LARGEST = 1 << 27  #: bytes of a file that are read
SHORTEST = 0.05  #: seconds; less holds no pitch and no envelope to match
QUIETEST = -60.0  #: dBFS, peak; a 16-bit recording has 33 steps left there
LOUDEST = (
    24.0  #: dBFS, peak; a file beyond it holds floats scaled like integers, and is brought down to 0 dBFS
)
LEAD = 0.003  #: seconds kept before the onset, so that the attack is whole
FADE = 0.010  #: seconds of fade-out where a sound is cut
BLOCK_HOP, BLOCK_HOPS = SAMPLE_RATE // 10, 4  #: loudness is taken in blocks of 400 ms, one every 100 ms
GATE = -70.0  #: LUFS; quieter blocks do not count
K_GAIN = 2.55  #: most that K-weighting raises power

#: How mp3 files begin: an ID3 tag or a frame. One of a known kind that cannot be read is damaged.
MP3 = (b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3")
AGAIN = "copy it again, or convert it to wav, flac, mp3, ogg or aiff ('ffmpeg -i input output.wav' does that)"


class UnusableSound(ValueError):
    """A recording that cannot be used. The message names it, says what is wrong and what to do."""


def read_sound(path: str | os.PathLike) -> np.ndarray:
    """Read a sound file, or a pipe -> float32 (channels, samples) at 44.1 kHz.

    Reads what libsndfile reads: wav, flac, mp3, ogg (Vorbis, Opus, FLAC), aiff and some rarer ones, at any rate and bit
    depth. Mono stays mono and stereo stays stereo; more than two channels become their mean, mono, because no stereo
    pair can be guessed from a count. Only the first 60 s (and 128 MiB) are read, however long the file: the note must
    begin there. Other rates go through soxr's "VHQ" (measured: aliases under -150 dB, flat to 0.003 dB up to 20 kHz).

    A wav whose recorder crashed before it wrote the length, or a flac from a pipe, is read to its end.

    Raises `UnusableSound` if there is no such file, it is a folder, empty, not audio, damaged, truncated within those
    60 s, or if `check_sound` refuses it. A missing end shows in wav and aiff by the stated size of the data (64 bytes
    are forgiven), in flac by the stated number of samples, in mp3 too (26 ms are forgiven), in ogg by the last page.
    It does not show in what states no length: a wav or flac from a pipe, an mp3 without a header for it (Xing, Info or
    VBRI; only streamed ones lack it, and those of varying bit rate are refused, because libsndfile stops early).
    """
    try:
        with open(path, "rb") as file:
            return decode_sound(file.read(LARGEST), str(path))
    except OSError as error:
        raise UnusableSound(f"{path}: {error.strerror or error}; give the path of a sound file") from error


def decode_sound(data: bytes | memoryview, name: str) -> np.ndarray:
    """`read_sound` for a file's bytes in memory, such as a browser's upload; messages call it `name`."""
    import soundfile
    import soxr

    if not data:
        raise UnusableSound(f"{name}: is an empty file; record or download it again")
    whole, data = len(data) < LARGEST, mend(bytes(data))
    try:
        with soundfile.SoundFile(file := Memory(data)) as sound:
            sound.seekable = lambda: False  # else it seeks after reading, and fails if no length is stated
            rate = sound.samplerate
            limit = round(LONGEST * rate)
            audio = sound.read(min(limit, sound.frames), dtype="float32", always_2d=True).T
            unread = len(data) - file.tell()
            wrong = defect(data, sound, audio.shape[1], unread) if audio.shape[1] < limit else ""
    except soundfile.SoundFileError as error:
        known = data.startswith((*CONTAINERS, *MP3))
        wrong = "is truncated or damaged" if known else "is not a sound file that can be read"
        raise UnusableSound(f"{name}: {wrong}; {AGAIN}") from error
    if wrong and whole:
        raise UnusableSound(f"{name}: {wrong}; {AGAIN}")
    if audio.shape[1] == limit:
        name = f"{name} (its first {LONGEST:.0f} s)"
    if audio.shape[0] > 2:
        audio = audio.mean(axis=0, keepdims=True)
    if rate != SAMPLE_RATE:
        audio = soxr.resample(audio.T, rate, SAMPLE_RATE, quality="VHQ").T
    audio = np.ascontiguousarray(audio)
    check_sound(audio, name)
    peak = np.abs(audio).max()
    return audio / peak if peak > 10 ** (LOUDEST / 20) else audio


def check_sound(audio: np.ndarray, name: str = "this sound") -> None:
    """Raise `UnusableSound` unless `audio` is (1 or 2, samples), finite, at least 50 ms long and not silent.

    Silent means that no sample is further than -60 dBFS (0.001) from its channel's mean: an offset is no sound.
    """
    if audio.ndim != 2 or audio.shape[0] not in (1, 2):
        raise UnusableSound(
            f"{name}: has shape {audio.shape}; pass (channels, samples) with one or two channels"
        )
    if not np.issubdtype(audio.dtype, np.floating):
        raise UnusableSound(f"{name}: holds {audio.dtype} samples; scale them to floats in [-1, 1] first")
    if audio.shape[1] == 0:
        raise UnusableSound(f"{name}: holds no samples; record it again or choose another file")
    if audio.shape[1] < SHORTEST * SAMPLE_RATE:
        milliseconds = 1000 * audio.shape[1] / SAMPLE_RATE
        raise UnusableSound(
            f"{name}: lasts {milliseconds:.0f} ms; choose a sound of at least {1000 * SHORTEST:.0f} ms"
        )
    if not np.isfinite(audio).all():
        raise UnusableSound(f"{name}: holds NaN or infinite samples; export it again from where it was made")
    peak = np.abs(audio - audio.mean(axis=1, keepdims=True, dtype=np.float64)).max()
    if peak < 10 ** (QUIETEST / 20):
        decibels = f"peaks at {20 * np.log10(peak):.0f} dBFS" if peak > 0 else "holds nothing but silence"
        raise UnusableSound(
            f"{name}: is silent ({decibels}); make it louder, with a peak over {QUIETEST:.0f} dBFS"
        )


def find_onset(audio: np.ndarray) -> float:
    """Where the note begins: seconds from the start of `audio` (channels, samples); 0.0 if nothing stands out.

    An energy threshold with backtracking. Digital silence at the start is passed over. Then the level is taken in
    windows of 11.6 ms, one every 1.45 ms, after a 40 Hz high-pass, so that neither an offset nor rumble counts. Its
    running median over 48 ms, which clicks do not move, gives the peak and, before the peak, the noise floor (no more
    than 60 dB below it). Where that median gets halfway from floor to peak, in dB, a note is surely on; from there the
    search goes back to the last window within 6 dB of the floor (a third of the way, if that is less).

    A quiet beginning of under 40 ms is taken for the note's own. So is any within 30 dB of the peak from which the
    sound takes over 50 ms to rise: it cannot be told from a sound that grows, and cutting that would be worse.

    Finds plucked starts within 3 ms at 20 dB SNR or more, and a slow swell where it stands 6 dB out of the noise. A
    click before the note is passed over, unless it is 20 dB louder than all else: then it is the sound.
    """
    import scipy.ndimage
    import scipy.signal

    hop, window = 64, 8  # samples; hops
    changes = np.flatnonzero((audio != audio[:, :1]).any(axis=0))
    skipped = changes[0] if changes.size else 0  # digital silence, at whatever offset
    audio = audio[:, skipped:]
    hops = audio.shape[1] // hop
    if hops < window:
        return skipped / SAMPLE_RATE
    pole = np.exp(-2 * np.pi * 40 / SAMPLE_RATE)
    centred = np.subtract(audio, audio[:, :1], dtype=np.float64) + 1e-20  # 1e-20: as in loudness()
    steady = scipy.signal.lfilter([1, -1], [1, -pole], centred)
    power = np.square(steady[:, : hops * hop]).reshape(-1, hops, hop).mean(axis=(0, 2))
    level = 10 * np.log10(np.convolve(power, np.full(window, 1 / window), "valid") + 1e-20)

    sustained = scipy.ndimage.median_filter(level, 33, mode="constant", cval=-200)
    envelope = sustained if level.max() < sustained.max() + 20 else level  # else the sound is itself a click
    peak = envelope.max()
    floor = max(sustained[: envelope.argmax() + 1].min(), peak - 60)
    contrast = peak - floor
    note = np.argmax(envelope > floor + contrast / 2)
    quiet = np.flatnonzero(level[: note + 1] < floor + min(6, contrast / 3))
    if quiet.size >= 20 and (contrast > 30 or (contrast > 9 and note - quiet[-1] < 35)):
        skipped += (quiet[-1] + window) * hop
    return float(skipped / SAMPLE_RATE)


def prepare(audio: np.ndarray, seconds: float = 4.0) -> np.ndarray:
    """The note alone, float32 (channels, round(seconds * 44100)): begins 3 ms before the onset, has no offset.

    Longer sounds are cut and shorter ones padded with zeros, both after a fade-out of 10 ms; one that fits exactly
    keeps its end. The level is left alone. Raises `UnusableSound` like `check_sound`.
    """
    length = round(seconds * SAMPLE_RATE)
    if length < 1:
        raise ValueError(f"seconds is {seconds}; it must be positive")
    check_sound(audio)
    note = audio[:, max(0, round((find_onset(audio) - LEAD) * SAMPLE_RATE)) :]
    fits = note.shape[1] == length
    note = note[:, :length]
    note = note - note.mean(axis=1, keepdims=True, dtype=np.float64)
    if not fits:
        fade = min(round(FADE * SAMPLE_RATE), note.shape[1])
        note[:, -fade:] *= np.linspace(1, 0, fade)
    return np.pad(note, ((0, 0), (0, length - note.shape[1]))).astype(np.float32)


def loudness(audio: np.ndarray) -> float:
    """Gated integrated loudness of `audio` (channels, samples), finite, in LUFS; -inf for silence.

    ITU-R BS.1770-4: K-weighting, blocks of 400 ms every 100 ms, gates at -70 LUFS and at 10 LU below the mean of
    what passes that. Each channel weighs 1, and mono is one channel: it reads 3 LU less than the same sound on two.
    A sound shorter than a block is measured as a single block of its own length.
    """
    return _integrated(_energies(audio), audio.shape[1])


def is_as_loud_as(audio: np.ndarray, floor: float) -> bool:
    """`loudness(audio) >= floor` (LUFS), but told by the beginning of most sounds, so much faster.

    The gates leave out the quietest blocks only, so the loudness is no less than without them; and that is no less
    than if every hop counted once, in one block of the four that it is part of, and those still to come were silent.
    Nor is it more than if one block held all the energy, raised by the most that K-weighting can: near silence ends
    here.
    """
    whole = audio.shape[1] // BLOCK_HOP
    block = 10 ** ((max(floor, GATE) + 0.691) / 10) * BLOCK_HOPS * BLOCK_HOP
    if whole >= BLOCK_HOPS and K_GAIN * np.vdot(audio, audio) < block:
        return floor == -np.inf
    enough = block * max(whole - BLOCK_HOPS + 1, 1)
    energy = _energies(audio, enough)
    return energy[:whole].sum() > enough or _integrated(energy, audio.shape[1]) >= floor


def _energies(audio: np.ndarray, enough: float = np.inf) -> np.ndarray:
    """K-weighted energy of each hop of 100 ms, all channels together, up to the hop that makes it `enough`.

    By scipy: pyloudnorm takes three times as long, cannot stop early (60 times for most sounds), refuses under 400 ms.
    """
    from scipy.signal import lfilter

    b, a = _k_weighting(SAMPLE_RATE)
    state, energy, total = np.zeros((len(audio), 4)), [], 0.0
    for start in range(0, audio.shape[1], BLOCK_HOP):
        hop = audio[:, start : start + BLOCK_HOP] + 1e-20  # tails of zeros would give subnormal numbers: slow
        weighted, state = lfilter(b, a, hop, zi=state)
        energy.append(np.vdot(weighted, weighted))
        total += energy[-1]
        if total > enough:
            break
    return np.array(energy)


def _integrated(energy: np.ndarray, samples: int) -> float:
    """Gated loudness from the energies of all hops of a sound with so many samples."""
    whole = samples // BLOCK_HOP
    if whole < BLOCK_HOPS:
        blocks = energy.sum(keepdims=True) / max(samples, 1)
    else:
        blocks = np.convolve(energy[:whole], np.ones(BLOCK_HOPS), "valid") / (BLOCK_HOPS * BLOCK_HOP)
    blocks = blocks[blocks > 10 ** ((GATE + 0.691) / 10)]
    if blocks.size:
        blocks = blocks[blocks > blocks.mean() / 10]
    return float(-0.691 + 10 * np.log10(blocks.mean())) if blocks.size else -np.inf


@functools.cache
def _k_weighting(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """(b, a) of BS.1770-4's two filters in one, at any rate.

    The standard tabulates 48 kHz only. These are the analogue parameters behind its tables, as in libebur128 and in
    B. De Man, "Evaluation of implementations of the EBU R128 loudness measurement", AES 145, 2018; at 48 kHz they
    give the tables' digits.
    """
    from scipy.signal import bilinear

    gain, w, q = 10 ** (3.999843853973347 / 20), _warped(1681.974450955533, rate), 0.7071752369554196
    shelf_b, shelf_a = bilinear([gain, gain**0.4996667741545416 * w / q, w * w], [1, w / q, w * w], rate)
    w, q = _warped(38.13547087602444, rate), 0.5003270373238773
    _, pass_a = bilinear([1, 0, 0], [1, w / q, w * w], rate)
    return np.convolve(shelf_b, [1, -2, 1]), np.convolve(shelf_a, pass_a)


def _warped(frequency: float, rate: float) -> float:
    return 2 * rate * np.tan(np.pi * frequency / rate)


def write_sound(path: str | os.PathLike, audio: np.ndarray) -> None:
    """Write (channels, samples) at 44.1 kHz as a wav file of 32-bit floats, whole or not at all.

    Floats because renders exceed 1.0 (a DX7's do), where integers would clip, and because they read back bit for bit.
    The same audio gives the same bytes. Raises ValueError for a name that does not end in .wav.
    """
    from scipy.io import wavfile

    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise ValueError(f"{path}: the sound is written as wav; end the name in .wav")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        wavfile.write(aside, SAMPLE_RATE, np.asarray(audio, dtype=np.float32).T)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
