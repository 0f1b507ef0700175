import os
import tempfile

# Pages that a test starts keep their conversations here, not with the user's own.
os.environ.setdefault("ASSISTANT_DATA", tempfile.mkdtemp(prefix="assistant-data-"))
# Two test processes and what they start share the cores: threads that spin while they wait for a core that
# another process has made a tiny model take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
