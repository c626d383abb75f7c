"""Recordings: reading, checking, trimming, measuring and writing them.

The one place that says what a usable sound is. In memory a sound is float32, shape (channels, samples), at
`SAMPLE_RATE`, with one channel or two. Full scale is 1.0, but renders may exceed it and nothing here clips.

    audio = read_sound("bass.mp3")      # any rate, any channel count; raises UnusableSound with the reason
    target = prepare(audio, 4.0)        # starts at the onset, lasts exactly 4 s
    loudness(target)                    # LUFS
"""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numba
import numpy as np
import soundfile
import soxr
from scipy.io import wavfile
from scipy.ndimage import median_filter
from scipy.signal import lfilter

SAMPLE_RATE = 44_100
LONGEST = 60.0  #: seconds of a file that are read; what comes later is ignored
SHORTEST = 0.05  #: seconds; less holds no pitch and no envelope to match
QUIETEST = -60.0  #: dBFS, peak; a 16-bit recording has 33 steps left there
LEAD = 0.003  #: seconds kept before the onset, so that the attack is whole
FADE = 0.010  #: seconds of fade-out where a sound is cut
BLOCK_HOP, BLOCK_HOPS = SAMPLE_RATE // 10, 4  #: loudness is taken in blocks of 400 ms, one every 100 ms
GATE = -70.0  #: LUFS; quieter blocks do not count

#: How files of the usual formats begin (mp3: an ID3 tag or a frame); one of these that cannot be read is damaged.
MAGIC = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3")
AGAIN = "copy it again, or convert it to wav, flac, mp3, ogg or aiff ('ffmpeg -i input output.wav' does that)"


class UnusableSound(ValueError):
    """A recording that cannot be used. The message names it, says what is wrong and what to do."""


def read_sound(path: str | os.PathLike) -> np.ndarray:
    """Read a sound file -> float32 (channels, samples) at 44.1 kHz.

    Reads what libsndfile reads: wav, flac, mp3, ogg (Vorbis, Opus), aiff and some rarer ones, at any rate and bit
    depth. Mono stays mono and stereo stays stereo; more than two channels become their mean, mono, because no stereo
    pair can be guessed from a count. Only the first 60 s are read, however long the file: the note must begin there.
    Other rates go through soxr's "VHQ" (measured: aliases under -150 dB, flat to 0.003 dB up to 20 kHz).

    Raises `UnusableSound` if there is no such file, it is a folder, empty, not audio, damaged, truncated within those
    60 s, or if `check_sound` refuses it. A missing end shows in wav and aiff by the stated size of the data (64 bytes
    are forgiven), in flac by the stated number of samples, in mp3 too (26 ms are forgiven), in ogg by the last page.
    It does not show in an mp3 without a length header (Xing, Info or VBRI; only streamed ones lack it, and those of
    varying bit rate are refused, because libsndfile stops early), in a wav of no stated size (a pipe's) or rarer kinds.
    """
    try:
        with open(path, "rb") as file:
            return _decode(file, str(path))
    except OSError as error:
        raise UnusableSound(f"{path}: {error.strerror}; give the path of a sound file") from error


def decode_sound(data: bytes | memoryview, name: str) -> np.ndarray:
    """`read_sound` for a file's bytes in memory, such as a browser's upload; messages call it `name`."""
    return _decode(io.BytesIO(data), name)


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
    hop, window = 64, 8  # samples; hops
    changes = np.flatnonzero((audio != audio[:, :1]).any(axis=0))
    skipped = changes[0] if changes.size else 0  # digital silence, at whatever offset
    audio = audio[:, skipped:]
    hops = audio.shape[1] // hop
    if hops < window:
        return skipped / SAMPLE_RATE
    pole = np.exp(-2 * np.pi * 40 / SAMPLE_RATE)
    centred = np.subtract(audio, audio[:, :1], dtype=np.float64) + 1e-20  # 1e-20: as in loudness()
    steady = lfilter([1, -1], [1, -pole], centred)
    power = np.square(steady[:, : hops * hop]).reshape(-1, hops, hop).mean(axis=(0, 2))
    level = 10 * np.log10(np.convolve(power, np.full(window, 1 / window), "valid") + 1e-20)

    sustained = median_filter(level, 33, mode="constant", cval=-200)
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
    energy = _energies(audio, *K_WEIGHTING, np.inf)
    whole = audio.shape[1] // BLOCK_HOP
    if whole < BLOCK_HOPS:
        blocks = energy.sum(keepdims=True) / max(audio.shape[1], 1)
    else:
        blocks = np.convolve(energy[:whole], np.ones(BLOCK_HOPS), "valid") / (BLOCK_HOPS * BLOCK_HOP)
    blocks = blocks[blocks > 10 ** ((GATE + 0.691) / 10)]
    if blocks.size:
        blocks = blocks[blocks > blocks.mean() / 10]
    return float(-0.691 + 10 * np.log10(blocks.mean())) if blocks.size else -np.inf


def is_as_loud_as(audio: np.ndarray, floor: float) -> bool:
    """`loudness(audio) >= floor` (LUFS), but told by the beginning of most sounds, so much faster.

    The gates leave out the quietest blocks only, so the loudness is no less than without them; and that is no less
    than if every hop counted once, in one block of the four that it is part of, and those still to come were silent.
    Nor is it more than if one block held all the energy, raised by the most that K-weighting can: near silence ends
    here.
    """
    whole = audio.shape[1] // BLOCK_HOP
    blocks = max(whole - BLOCK_HOPS + 1, 1)
    block = 10 ** ((max(floor, GATE) + 0.691) / 10) * BLOCK_HOPS * BLOCK_HOP
    if whole >= BLOCK_HOPS and K_GAIN * np.vdot(audio, audio) < block:
        return floor == -np.inf
    enough = block * blocks
    return _energies(audio, *K_WEIGHTING, enough)[:whole].sum() > enough or loudness(audio) >= floor


@numba.njit(nogil=True, cache=True)
def _energies(audio, b, a, enough):
    """K-weighted energy of each hop of 100 ms, all channels together; zero after the hop that made it `enough`."""
    energy = np.zeros(-(-audio.shape[1] // BLOCK_HOP))
    state = np.zeros((audio.shape[0], 4))
    for hop in range(len(energy)):
        for channel in range(audio.shape[0]):
            s0, s1, s2, s3 = state[channel]
            for x in audio[channel, hop * BLOCK_HOP : (hop + 1) * BLOCK_HOP]:
                x += 1e-20  # a tail of zeros would leave subnormal numbers, which are slow
                y = b[0] * x + s0
                s0 = b[1] * x - a[1] * y + s1
                s1 = b[2] * x - a[2] * y + s2
                s2 = b[3] * x - a[3] * y + s3
                s3 = b[4] * x - a[4] * y
                energy[hop] += y * y
            state[channel] = s0, s1, s2, s3
        if energy.sum() > enough:
            break
    return energy


def write_sound(path: str | os.PathLike, audio: np.ndarray) -> None:
    """Write (channels, samples) at 44.1 kHz as a wav file of 32-bit floats, whole or not at all.

    Floats because renders exceed 1.0 (a DX7's do), where integers would clip, and because they read back bit for bit.
    The same audio gives the same bytes. Raises ValueError for a name that does not end in .wav.
    """
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise ValueError(f"{path}: the sound is written as wav; end the name in .wav")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        wavfile.write(aside, SAMPLE_RATE, np.asarray(audio, dtype=np.float32).T)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _decode(file: BinaryIO, name: str) -> np.ndarray:
    start = file.read(12)
    if not start:
        raise UnusableSound(f"{name}: is an empty file; record or download it again")
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            rate = sound.samplerate
            limit = round(LONGEST * rate)
            audio = sound.read(limit, dtype="float32", always_2d=True).T
            defect = _defect(file, sound, audio.shape[1]) if audio.shape[1] < limit else ""
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a name in .raw, which tells no rate
        known = start.startswith(MAGIC)
        defect = "is truncated or damaged" if known else "is not a sound file that can be read"
        raise UnusableSound(f"{name}: {defect}; {AGAIN}") from error
    if defect:
        raise UnusableSound(f"{name}: {defect}; {AGAIN}")
    if audio.shape[1] == limit:
        name = f"{name} (its first {LONGEST:.0f} s)"
    if audio.shape[0] > 2:
        audio = audio.mean(axis=0, keepdims=True)
    if rate != SAMPLE_RATE:
        audio = soxr.resample(audio.T, rate, SAMPLE_RATE, quality="VHQ").T
    audio = np.ascontiguousarray(audio)
    check_sound(audio, name)
    return audio


def _defect(file: BinaryIO, sound: soundfile.SoundFile, got: int) -> str:
    """What is wrong with a file that was read to its end, `got` samples; "" if nothing. libsndfile seldom says."""
    truncated = "is truncated (its end is missing)"
    position, end = file.tell(), file.seek(0, io.SEEK_END)
    if sound.format in ("WAV", "WAVEX", "AIFF"):
        file.seek(12)
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "big" if sound.format == "AIFF" else "little")
            if chunk[:4] in (b"data", b"SSND"):
                # Pipes state a size near 2 or 4 GiB; sloppy writers count their header of 44 bytes or so as data.
                return truncated if end - file.tell() + 64 < size < 0x7FFF_0000 else ""
            file.seek(size + size % 2, io.SEEK_CUR)
    if sound.format == "OGG":  # the last page must be whole and marked as the last (RFC 3533)
        file.seek(max(0, end - 65_536))
        page = file.read()
        page = page[max(0, page.rfind(b"OggS")) :]
        whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return "" if whole and page[5] & 4 else truncated
    if sound.format == "MP3":
        file.seek(0)
        tag = file.read(10)
        file.seek(10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9]) if tag[:3] == b"ID3" else 0)
        first = file.read(256)
        if any(mark in first for mark in (b"Xing", b"Info", b"VBRI")):
            # Some encoders also count the frame of 1152 samples that holds the mark.
            return truncated if got + 1152 < sound.frames else ""
        if got == sound.frames and end - position > 4096:  # libsndfile guessed, and stopped in the middle
            return "does not say how long it is, and cannot be read to its end"
    return ""  # flac: libsndfile itself raises an error


def _k_weighting(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """(b, a) of BS.1770-4's two filters in one, at any rate.

    The standard tabulates 48 kHz only. These are the analogue parameters behind its tables, as in libebur128 and in
    B. De Man, "Evaluation of implementations of the EBU R128 loudness measurement", AES 145, 2018; at 48 kHz they
    give the tables' digits.
    """
    k, q, gain = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    root = gain**0.4996667741545416
    shelf_b = np.array([gain + root * k / q + k * k, 2 * (k * k - gain), gain - root * k / q + k * k])
    shelf_a = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    pass_b = np.array([1, -2, 1])
    pass_a = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    return np.convolve(shelf_b, pass_b) / shelf_a[0], np.convolve(shelf_a / shelf_a[0], pass_a / pass_a[0])


K_WEIGHTING = _k_weighting(SAMPLE_RATE)
K_GAIN = 2.55  # at most, of power
