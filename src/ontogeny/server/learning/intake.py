"""From requests to the journal: each text once, although prompts grow and clients repeat their requests."""

import json
import threading
from collections.abc import Collection

from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.server.learning import repeats
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.learning.journal import SHARED, TrainingExample
from ontogeny.server.learning.prompts import LearnedPrompt, RecentPrompts, find_new_part
from ontogeny.server.request_identity import RequestIdentity
from ontogeny.server.store import Store

NUM_LOCKS = 64  # among which the keys are divided
MAX_EXPORTED = 1024  # prompts


class ExampleIntake:
    """Writes the texts of requests to the journal, one request of a key at a time.

    Its memory of prompts names only text that the journal holds: a prompt is added once its example is on disk.
    Methods wait for the database, so they are not called on the thread of the event loop.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._prompts = store, RecentPrompts()
        self._key_locks = [threading.Lock() for _ in range(NUM_LOCKS)]  # while a text is written
        self._prompts_lock = threading.Lock()  # of the memory of prompts, held for moments

    def add_text(self, branches: BranchManager, key: str, text: str, request: RequestIdentity) -> int | None:
        """Writes a text to the journal.

        Args:
            branches: The branches of the deployment.
            key: The key that sent the text and whose branch learns it.
            text: What the branch learns.
            request: The request that sent it.

        Returns:
            The number of the example, that of the first request if this one repeats it, or None in a frozen branch.

        Raises:
            IdempotencyKeyReused: The idempotency key belongs to another request.
            QuotaExceeded: The key may not store the text.
        """
        with self._lock_of(key):
            return branches.add_example(key, key, text, request)

    def add_prompt(
        self, branches: BranchManager, key: str, prompt: str, tokenizer: Tokenizer, request: RequestIdentity
    ) -> int | None:
        """Writes the new part of a prompt to the journal: all of it, unless it continues a recent prompt of the key.

        Args:
            branches: The branches of the deployment.
            key: The key that sent the prompt and whose branch learns it.
            prompt: All of it, whatever its beginning.
            tokenizer: The tokenizer of the model.
            request: The request that sent it.

        Returns:
            The number of the example, or None if nothing is new; see `add_text` for the rest and the exceptions.
        """
        name = branches.deployment
        with self._lock_of(key):
            record = repeats.find_record(self._store, key, request)
            if record is not None:
                if record.example is not None and record.digest is not None:
                    self._remember(key, name, prompt, 0, record.example)
                return record.example
            with self._prompts_lock:
                beginning = self._prompts.find_beginning(key, name, prompt)
            new_part = prompt if beginning is None else find_new_part(prompt, beginning.num_characters, tokenizer)
            if not new_part.strip():
                if request.idempotency_key is not None:
                    with self._store.transaction():  # in which another process may have recorded the same request
                        if repeats.find_record(self._store, key, request) is None:
                            repeats.add_record(self._store, key, request, None)
                return None
            number = branches.add_example(key, key, new_part, request)
            if number is not None:
                first_example = number if beginning is None else beginning.first_example
                self._remember(key, name, prompt, first_example, number)
            return number

    def forget_examples(self, deployment: str, examples: Collection[TrainingExample]) -> None:
        """Lets the prompts that erased examples were part of count as new if their keys send them again."""
        for example in examples:
            with self._lock_of(example.key), self._prompts_lock:
                self._prompts.forget(example.key, deployment, example.number)

    def export_prompts(self, branch: str) -> str:
        """Describes the recent prompts whose text a branch learns, as JSON; at most `MAX_EXPORTED` of them.

        Args:
            branch: Its name, DEPLOYMENT/OWNER.
        """
        deployment, _, owner = branch.partition("/")
        with self._prompts_lock:
            senders = self._prompts.list_keys(deployment) if owner == SHARED else [owner]
            prompts = [
                [key, prompt.num_characters, prompt.digest.hex(), prompt.first_example, prompt.last_example]
                for key in senders
                for prompt in self._prompts.list_prompts(key, deployment)
            ]
        return json.dumps(prompts[-MAX_EXPORTED:])

    def import_prompts(self, branch: str, description: str) -> None:
        """Remembers prompts that another process has learned.

        Args:
            branch: Its name.
            description: What `export_prompts` has returned there.
        """
        deployment, prompts = branch.partition("/")[0], json.loads(description)
        with self._prompts_lock:
            for key, num_characters, digest, first_example, last_example in prompts:
                prompt = LearnedPrompt(num_characters, bytes.fromhex(digest), first_example, last_example)
                self._prompts.add_learned(key, deployment, prompt)
        # What was erased since the description was written; `forget_examples` is called for later erasures.
        first_example = min((prompt[3] for prompt in prompts), default=None)
        if first_example is not None:
            query = "SELECT key, number FROM examples WHERE branch = ? AND number >= ? AND erased_at IS NOT NULL"
            for key, number in self._store.execute(query, branch, first_example):
                with self._prompts_lock:
                    self._prompts.forget(key, deployment, number)

    def _lock_of(self, key: str) -> threading.Lock:
        """The lock that is held while a text of a key is written."""
        return self._key_locks[hash(key) % NUM_LOCKS]

    def _remember(self, key: str, deployment: str, prompt: str, first_example: int, last_example: int) -> None:
        """Adds a prompt to the memory; see `RecentPrompts.add`."""
        with self._prompts_lock:
            self._prompts.add(key, deployment, prompt, first_example, last_example)
