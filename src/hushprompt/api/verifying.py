"""Whether a run folder says what its config and ledger prove."""

from __future__ import annotations

from pathlib import Path

from hushprompt.api.run import Run
from hushprompt.audits import verify as verifying
from hushprompt.audits.verify import Verification
from hushprompt.errors import files_told


@files_told()
def verify(run: Run | str | Path, *, digest: str = "") -> Verification:
    """Compute noise, releases and epsilon of a run again, and compare everything that it published.

    Noise multipliers, releases and epsilon follow from config, clients' sizes and ledger, and are held against
    dp_accounting; stored numbers are only compared. Nothing is written, and the data are not needed.

    Args:
        run: a run folder, also a copy; of a federation the server's folder, or that of one run in a client's store.
        digest: as an earlier call printed it, kept elsewhere: the folder must be the same to the last bit. A folder
            that was rewritten as a whole cannot be told from inside.

    Returns:
        What was checked, what differs, and what is not recorded; it shows itself in sentences.

    Raises:
        DataError: it is no run folder, or a file cannot be read.
    """
    return verifying.verify(Path(run), digest)
