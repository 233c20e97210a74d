"""Makes the files of `old_server/`: a database and states as the last commit of the old format wrote them.

Run in a checkout of commit e4ec9bd: python make_old_server_files.py FOLDER
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.content import transformer
from ontogeny.language.model import LanguageModel
from ontogeny.language.tokenizer import Bytes
from ontogeny.lifecycle.subject import parse
from ontogeny.lifecycle.train import train
from ontogeny.server import journal, keys
from ontogeny.server.learner import Learner, Scratch
from ontogeny.server.lines import Lines
from ontogeny.server.sessions import Sessions
from ontogeny.server.store import Store
from ontogeny.server.text_sessions import TextSessions
from ontogeny.types import Weights


def main(folder: Path) -> None:
    folder.mkdir()
    store = Store(folder / "state")
    keys.create(store, "anna")
    origin = {"weight": np.ones(2, np.float32)}

    def learn(weights, text, between):
        return Weights({"weight": weights.content["weight"] + 1}, weights.scratch)

    birth = lambda: Weights(jax.tree.map(jnp.asarray, origin), Scratch((), jnp.int32(0)))  # noqa: E731
    learner = Learner(origin, birth, lambda content: content, learn, lambda content, between: 1.0, 1.0, "learner")
    lines = Lines(store, "story", learner)
    lines.contribute("anna", "anna", "A text to learn.")
    lines.advance()
    (folder / "branch.safetensors").write_bytes(lines.export("anna"))
    config = transformer.Config(vocabulary=257, context=8, layers=1, heads=1, width=4, hidden=4)
    model = LanguageModel(config, transformer.initial(jax.random.key(0), config), Bytes(), None)
    texts = TextSessions("story", model, store)
    (folder / "text_session.safetensors").write_bytes(texts.export("anna", texts.create("anna", texts.base).id))
    run = Path(tempfile.mkdtemp()) / "run"
    train(parse({"agent": "thompson", "world": "bandit", "development": "single_lifetime", "seed": 0}, "test"), run)
    agents = Sessions("bandit", run, store, online=False)
    (folder / "agent_session.safetensors").write_bytes(agents.export("anna", agents.create("anna", 0).id))
    texts.stop()
    agents.stop()
    journal.rollback(store, "story/anna", 0, "test")
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
