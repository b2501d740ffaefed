"""The columns of the tables, and what each means."""

from __future__ import annotations

from leaderboard.lines import SUCCESS_MSE
from leaderboard.tables.model import (
    Column,
    Reach,
    decibel,
    duration,
    fine_percent,
    number,
    percent,
    points,
    scientific,
    signed_decibel,
    similarity,
    size,
)

_VERDICT = Column(
    "verdict",
    "Verdict",
    "leaks: more comes out than a guess gives (gain above zero, or identification above chance, by the whole"
    " interval); at the floor: it does not, though the attack works on its positive control; unqualified: the control"
    " failed too, so nothing is shown; not evaluated: no attack that knows the scheme was applicable; negative control,"
    " oracle: no verdict",
    reach=Reach.EVERYWHERE,
)
_DEFENSE = Column("defense", "Defense", "stack of defenses; plain is none", reach=Reach.EVERYWHERE)
_IDENTIFICATION = Column(
    "identification",
    "Identified",
    "share of reconstructions whose nearest image, among the true one and 999 others, is the true one; chance 0.1%",
    percent,
    Reach.EVERYWHERE,
)
_PSNR = Column(
    "psnr", "PSNR", "mean peak signal-to-noise ratio in dB, each image capped at 60", decibel, Reach.EVERYWHERE
)
_FLOOR = Column(
    "floor",
    "Floor",
    "PSNR in dB of the best guess without any attack: grey, the mean image, the class mean, a random image",
    decibel,
    Reach.EVERYWHERE,
)
_CONTROL = Column(
    "control",
    "Control",
    "PSNR in dB of the same attack where it must work (its positive control, such as the undefended update)",
    decibel,
    Reach.EVERYWHERE,
)
_SUCCESS = Column(
    "success",
    "Success",
    f"share of reconstructions with a mean squared error below {SUCCESS_MSE:g} (above 20 dB)",
    percent,
)
_SSIM = Column("ssim", "SSIM", "structural similarity, higher is closer", similarity)
_LPIPS = Column("lpips", "LPIPS", "perceptual distance (AlexNet), lower is closer", similarity)
_ST_LPIPS = Column("st_lpips", "ST-LPIPS", "shift-tolerant perceptual distance, lower is closer", similarity)
_GAIN = Column("gain", "Gain", "PSNR less the floor, in dB, image by image", signed_decibel)
_IMAGES = Column("images", "Images", "reconstructions scored", number(0))
_MEDIAN = Column("psnr_median", "Median PSNR", "in dB", decibel)
_ACCURACY = Column("accuracy", "Accuracy", "on the test split after the last round", fine_percent, Reach.EVERYWHERE)
_DIFFERENCE = Column(
    "accuracy_difference", "vs plain", "accuracy less that of plain, in points, paired by test image and seed", points
)
_BYTES_UP = Column("bytes_up", "Up", "bytes that one client sends in one round", size, Reach.EVERYWHERE)

LEADERBOARD = (
    Column(
        "rank",
        "#",
        "rank: 1 leaks least, by identification, then by gain; defenses that cannot be told apart share a rank",
        number(0),
        Reach.EVERYWHERE,
    ),
    _DEFENSE,
    _VERDICT,
    Column(
        "worst",
        "Worst case",
        "the attack, round and victims with the highest mean identification",
        reach=Reach.EVERYWHERE,
    ),
    *(_IDENTIFICATION, _PSNR, _FLOOR, _CONTROL, _ACCURACY, _DIFFERENCE),
    *(_GAIN, _SUCCESS, _SSIM, _LPIPS, _ST_LPIPS),
    Column(_BYTES_UP.name, _BYTES_UP.heading, _BYTES_UP.meaning, size),
    Column("images", "Images", "", number(0), Reach.DATA),
    Column("psnr_median", "Median PSNR", "", decibel, Reach.DATA),
    Column("notes", "Notes", "", reach=Reach.DATA),
)

ATTACKS = (
    Column("adversary", "Adversary", "position/knowledge, and any oracles that were given", reach=Reach.EVERYWHERE),
    _DEFENSE,
    Column("attack", "Attack", "", reach=Reach.EVERYWHERE),
    Column("snapshot", "Round", "rounds of training before the attacked message", number(0), Reach.EVERYWHERE),
    Column("regime", "Victims", "b: batch size, s: local steps, e: local epochs of a probe", reach=Reach.EVERYWHERE),
    Column("role", "Role", "attack, or positive control of attacks"),
    _VERDICT,
    Column("outcomes", "Cells", "what became of the cells, one a seed"),
    _IMAGES,
    *(_IDENTIFICATION, _PSNR, _MEDIAN, _FLOOR, _CONTROL, _GAIN, _SUCCESS, _SSIM, _LPIPS, _ST_LPIPS),
    Column("evaluations", "Evaluations", "gradient evaluations a cell spends", number(0)),
    Column("seconds", "Time", "a cell takes", duration),
    Column("objective", "Objective", "mean of the attack's own final objective", scientific),
    Column("findings", "Findings", "other numbers that the attack reports"),
    Column("details", "Details", "reason or message where a cell was not measured"),
)

TRAININGS = (
    Column(
        "training", "Defense", "stack of defenses, or training without federation for reference", reach=Reach.EVERYWHERE
    ),
    _ACCURACY,
    Column(_DIFFERENCE.name, _DIFFERENCE.heading, _DIFFERENCE.meaning, points, Reach.EVERYWHERE),
    _BYTES_UP,
    Column("bytes_down", "Down", "bytes that one client receives in one round", size, Reach.EVERYWHERE),
    Column("key_bytes", "Keys", "bytes of all key messages that one client receives", size),
    Column("plain_share", "In clear", "share of the sent numbers that nothing hides", percent, Reach.EVERYWHERE),
    Column("seconds_train", "Training", "time of local training", duration),
    Column("seconds_keys", "Key handling", "time to make, issue and take keys, the first ones shared out", duration),
    Column("seconds_protect", "Protect", "time to protect updates before they are sent", duration),
    Column("seconds_aggregate", "Aggregate", "time of the server", duration),
    Column("seconds_recover", "Recover", "time to recover the aggregate", duration),
    Column(
        "protection_share",
        "Share of round",
        "key handling, protect, aggregate and recover as a share of their sum with training",
        percent,
        Reach.EVERYWHERE,
    ),
    Column("peak_memory_bytes", "Memory", "peak", size),
    Column(
        "aggregation_error",
        "Error",
        "largest difference of the recovered aggregate from the plain weighted mean",
        scientific,
    ),
    Column("stated_error", "Stated", "the largest such difference that the defense allows itself", scientific),
    Column("key_holders", "Holds a key", "the parties that can decode", reach=Reach.EVERYWHERE),
    Column("collusion_bound", "Collusion", "how many colluding parties the defense withstands"),
)
