import os
import tempfile

# Pages that a test starts keep their conversations here, not with the user's own.
os.environ.setdefault("ASSISTANT_DATA", tempfile.mkdtemp(prefix="assistant-data-"))
