"""CKKS (Cheon, Kim, Kim and Song 2017) under one secret key, by SEAL through TenSEAL's `sealapi`.

`sealapi` moves ciphertexts through files alone, compressed by zstd. What stands in them is a header, the public
parameters and last the coefficients; only the coefficients go on the wire, and what is decrypted is put into a frame
that SEAL wrote here. So nothing that came from outside is ever parsed by SEAL but coefficients that were checked.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from tenseal import sealapi

from defenses.ckks.grid import SCALE, Slots
from defenses.ckks.ring import DEGREE, MODULUS, WORDS, Words
from federation.errors import KeyholeError

_HEADER_BYTES, _COMPRESSION, _SIZE = 16, 5, slice(8, 16)
"""SEAL's header: its length, where the kind of compression stands in it, and where the length of header and content."""

_ZSTD, _UNCOMPRESSED = 2, 0


class Scheme:
    """Encryption and decryption under the secret key of a seed.

    The key is a function of the seed (SEAL's key generation on its Blake2xb stream). Encryption draws from the
    operating system's randomness, never from the seed: a second encryption of the same values would share it.

    Encryption is symmetric, since whoever encrypts here also decrypts: there is no public key to hand out or to check,
    and the noise is a tenth of a public-key encryption's.

    Args:
        seed: 64 secret bytes: SEAL's seeds are eight words of 64 bits.
    """

    def __init__(self, seed: bytes) -> None:
        context = _context()
        words = np.frombuffer(seed, "<u8").tolist()
        generator = sealapi.KeyGenerator(_context(sealapi.Blake2xbPRNGFactory(words)))
        self._context = context
        self._encoder = sealapi.CKKSEncoder(context)
        self._encryptor = sealapi.Encryptor(context, generator.secret_key())
        self._decryptor = sealapi.Decryptor(context, generator.secret_key())

    def encrypt(self, slots: Slots) -> Words:
        """Fresh ciphertexts of [ciphertexts, DEGREE] values."""
        words = np.empty((len(slots), WORDS), np.uint64)
        with tempfile.TemporaryDirectory() as folder:
            for index, row in enumerate(slots):
                words[index] = _coefficients(_saved(self._encrypted(row), Path(folder))[1])
        return words

    def decrypt(self, words: Words) -> Slots:
        """The values of ciphertexts, with their noise: [ciphertexts, DEGREE].

        Args:
            words: coefficients under MODULUS; whose they are does not matter, garbage decrypts to garbage.
        """
        slots = np.empty((len(words), DEGREE))
        header, frame = self._frame
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ciphertext"
            for index, row in enumerate(words):
                file.write_bytes(header + frame + row.astype("<u8").tobytes())
                ciphertext, plaintext = sealapi.Ciphertext(), sealapi.Plaintext()
                ciphertext.load(self._context, str(file))
                file.unlink()  # a file that is overwritten is flushed to the disk, which takes longer than all the rest
                self._decryptor.decrypt(ciphertext, plaintext)
                slots[index] = np.array(self._encoder.decode_complex(plaintext)).view(np.float64)
        return slots

    def _encrypted(self, slots: Slots) -> sealapi.Ciphertext:
        plaintext, ciphertext = sealapi.Plaintext(), sealapi.Ciphertext()
        self._encoder.encode(slots.view(np.complex128).tolist(), SCALE, plaintext)
        self._encryptor.encrypt_symmetric(plaintext, ciphertext)
        return ciphertext

    @cached_property
    def _frame(self) -> tuple[bytes, bytes]:
        """What stands before the coefficients in an uncompressed file of SEAL's: the header, and the parameters."""
        example = self._encrypted(np.zeros(DEGREE))
        with tempfile.TemporaryDirectory() as folder:
            written, content = _saved(example, Path(folder))
        found = _coefficients(content)
        if any(found[index] != example[index] for index in (0, DEGREE, WORDS - 1)):
            raise KeyholeError(
                "ckks: this version of TenSEAL writes ciphertexts in a format that Keyhole does not know"
            )
        header = bytearray(written)
        header[_COMPRESSION] = _UNCOMPRESSED
        header[_SIZE] = (_HEADER_BYTES + len(content)).to_bytes(8, "little")
        return bytes(header), content[: -8 * WORDS]


def _context(randomness: sealapi.Blake2xbPRNGFactory | None = None) -> sealapi.SEALContext:
    """SEAL's context of the public parameters; SEAL refuses those under 256 bits of security."""
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(DEGREE)
    parameters.set_coeff_modulus([sealapi.Modulus(MODULUS)])
    if randomness is not None:
        parameters.set_random_generator(randomness)
    context = sealapi.SEALContext(parameters, False, sealapi.SEC_LEVEL_TYPE.TC256)
    assert context.parameters_set(), context.parameters_error_message()
    return context


def _saved(ciphertext: sealapi.Ciphertext, folder: Path) -> tuple[bytes, bytes]:
    """The header of the file that SEAL writes, and its content without compression."""
    file = folder / "ciphertext"
    ciphertext.save(str(file))
    written = file.read_bytes()
    file.unlink()
    if written[_COMPRESSION] != _ZSTD:
        raise KeyholeError("ckks: this TenSEAL was built without zstd; install the one from PyPI")
    content = pa.CompressedInputStream(pa.BufferReader(written[_HEADER_BYTES:]), "zstd").read()
    return written[:_HEADER_BYTES], content


def _coefficients(content: bytes) -> Words:
    return np.frombuffer(content[-8 * WORDS :], "<u8").astype(np.uint64)
