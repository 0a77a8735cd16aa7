"""A hostile site, for test_hostile.py: it holds the key of an enrolled site and speaks Flower's Fleet API by itself.

    python tests/hostile/hostile_site.py SITE_FOLDER SERVER_ADDRESS TRICK,TRICK,...

It approves what is proposed once there is a file `go` in its folder, and plays one trick a round; with the trick
"honest" in every round it is a quick honest site. What it did is in SITE_FOLDER/tricks.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.client.grpc_rere_client import connection
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.retry import make_simple_grpc_retry_invoker
from hostile_pieces import COUNT_10_GB, array_piece, bomb, junk_of, missing, name_of

SERVER = 1


class HostileSite:
    """One connection, and what is sent over it."""

    def __init__(self, folder: Path, link: tuple) -> None:
        self.folder = folder
        self.node, self.receive, self.send, _, _, self.pull, self.push, self.confirm = link
        self.entries, self.recent = 0, ""

    def note(self, **facts: object) -> None:
        with (self.folder / "tricks.jsonl").open("a") as file:
            file.write(json.dumps({"at": time.time(), **facts}) + "\n")

    def question(self):
        """The next question with its content, or None."""
        if (got := self.receive()) is None:
            return None
        message, tree = got
        run = message.metadata.run_id
        parts = {}
        for part in iterate_object_tree(tree):
            while part.object_id not in parts:
                try:
                    parts[part.object_id] = self.pull(run, part.object_id)
                except Exception:  # not all there yet
                    time.sleep(0.1)
        self.confirm(run, message.metadata.message_id)
        whole = inflate_object_from_contents(message.metadata.message_id, parts)
        whole.metadata.__dict__["_message_id"] = message.metadata.message_id
        return whole

    def message(self, asked, content=None, error=None, **changes):
        """A message in answer to `asked`; `changes` to its metadata."""
        fields = {
            "run_id": asked.metadata.run_id, "message_id": "", "src_node_id": self.node, "dst_node_id": SERVER,
            "reply_to_message_id": asked.metadata.message_id, "group_id": asked.metadata.group_id,
            "message_type": asked.metadata.message_type, "created_at": time.time(),
            "ttl": asked.metadata.created_at + asked.metadata.ttl - time.time() - 1,
        }  # fmt: skip
        answer = make_message(metadata=Metadata(**{**fields, **changes}), content=content, error=error)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        return answer

    def deliver(self, answer) -> int:
        """Send it; how many of its objects were taken."""
        objects = get_all_nested_objects(answer)
        wanted, session = self.send(answer, get_object_tree(answer), 0.0)
        for name in wanted:
            self.push(answer.metadata.run_id, session, name, objects[name].deflate())
        return len(wanted)

    def deliver_raw(self, asked, pieces: dict[str, bytes], tree: ObjectTree) -> None:
        """Send pieces that are no objects of Flower's own making."""
        answer = self.message(asked, error=Error(code=0, reason=""))
        answer.metadata.__dict__["_message_id"] = tree.object_id
        wanted, session = self.send(answer, tree, 0.0)
        for name in wanted:
            self.push(answer.metadata.run_id, session, name, pieces[name])

    def packet(self, asked, change=lambda header, tensors: None) -> RecordDict:
        """A packet that answers `asked` as an honest site would, after `change`."""
        said = asked.content["header"]
        header = {name: said[name] for name in ("protocol", "study_sha256", "run_id", "round")}
        self.entries += 1
        head = hashlib.sha256(f"{self.folder.name} {self.entries}".encode()).hexdigest()
        header.update(kind="answer", code="", ledger_entries=self.entries, ledger_head=head)
        self.recent += head[:8]
        header["ledger_recent"] = self.recent
        tensors = {
            name: np.frombuffer(array.data, "<f4").reshape(array.shape).copy()
            for name, array in asked.content["tensors"].items()
        }
        change(header, tensors)
        arrays = {n: Array(str(a.dtype), tuple(a.shape), "raw", a.tobytes()) for n, a in tensors.items()}
        return RecordDict({"header": ConfigRecord(header), "tensors": ArrayRecord(arrays)})

    def approve(self, asked) -> None:
        record = asked.content["proposal"]
        fields = {
            "protocol": record["protocol"],
            "study_sha256": record["study_sha256"],
            "state": "approved" if (self.folder / "go").exists() else "proposed",
        }
        self.deliver(self.message(asked, RecordDict({"decision": ConfigRecord(fields)})))

    def play(self, trick: str, asked) -> None:
        """Answer one round."""
        if trick in CHANGES:
            self.deliver(self.message(asked, self.packet(asked, CHANGES[trick])))
        else:
            getattr(self, trick)(asked)

    def silence(self, asked) -> None:
        """Nothing, for ever."""

    def endless(self, asked) -> None:
        """An answer is announced, and its pieces never come."""
        answer = self.message(asked, self.packet(asked))
        self.send(answer, get_object_tree(answer), 0.0)

    def twice(self, asked) -> None:
        """The same answer twice, and another one for the same question."""
        answer = self.message(asked, self.packet(asked))
        self.deliver(answer)
        again = self.deliver(answer)
        other = self.deliver(self.message(asked, self.packet(asked, CHANGES["wide"])))
        self.note(again=again, other=other)

    def impostor(self, asked) -> None:
        """Speak for the server and for another node, then answer honestly."""
        forged = self.packet(asked, CHANGES["wide"])
        as_server = self.message(asked, forged, src_node_id=SERVER, reply_to_message_id="")
        as_other = self.message(asked, forged, src_node_id=self.node ^ 1)
        taken = [self.deliver(one) for one in (as_server, as_other)]
        self.note(taken=taken)
        self.deliver(self.message(asked, self.packet(asked)))

    def garbled(self, asked) -> None:
        """An object that calls itself a message and is none."""
        content = b"Message  4\x00junk"
        name = hashlib.sha256(content).hexdigest()
        self.deliver_raw(asked, {name: content}, ObjectTree(object_id=name))

    def raises(self, asked) -> None:
        """Flower's own way to send the text of an exception."""
        self.deliver(self.message(asked, error=Error(code=2, reason="/data/CANARY^PATIENT.dcm")))

    def says(self, asked) -> None:
        """Text where a code should be."""

        def change(header, tensors):
            header["code"] = "CANARY PATIENT"
            tensors.clear()

        self.deliver(self.message(asked, self.packet(asked, change)))

    def bomb(self, asked) -> None:
        """A few megabytes on the wire that ask for ten gigabytes of the server's memory."""
        content = self.packet(asked, lambda header, tensors: tensors.clear())
        content["tensors"] = bomb()
        answer = self.message(asked, content)
        on_the_wire = sum(len(one.deflate()) for one in get_all_nested_objects(answer).values())
        self.note(trick="bomb", bytes=on_the_wire, taken_objects=self.deliver(answer))

    def fat(self, asked) -> None:
        """No more pieces than an honest answer has, as large as they can be; then a call of 100 MB, then no session."""
        count = len(asked.content["tensors"])
        session, wanted = self.announce(asked, count, real=count)
        taken, said = self.pour(asked, session, range(count), give_up=True)
        name = name_of(array_piece(1))
        for other, content in ((session, array_piece(0) * 20), ("", array_piece(1)), (session, array_piece(2))):
            said.append(self.offer(asked, other, name, content))
        self.note(trick="fat", wanted=wanted, taken_bytes=taken, said=said)

    def ten_gb(self, asked) -> None:
        """Ten gigabytes in proper pieces: they are announced, and sent, every one, whatever the server says to it."""
        session, wanted = self.announce(asked, COUNT_10_GB, real=0)
        began = time.time()
        taken, said = self.pour(asked, session, range(COUNT_10_GB), give_up=False)
        seconds = round(time.time() - began, 1)
        refused = {word: said.count(word) for word in set(said)}
        self.note(trick="ten_gb", wanted=wanted, taken_bytes=taken, refused=refused, seconds=seconds)

    def announce(self, asked, count: int, real: int) -> tuple[str, int]:
        """Say that so many pieces will come, the first `real` under their true names -> the session, how many of them
        the server wants.
        """
        names = [name_of(array_piece(number)) if number < real else missing(number) for number in range(count)]
        _, tree = junk_of(names)
        answer = self.message(asked, error=Error(code=0, reason=""))
        answer.metadata.__dict__["_message_id"] = tree.object_id
        wanted, session = self.send(answer, tree, 0.0)
        return session, len(wanted)

    def pour(self, asked, session: str, numbers: range, *, give_up: bool) -> tuple[int, list[str]]:
        """Send these pieces -> the bytes that were taken, and what was said to the others."""
        taken, said = 0, []
        for number in numbers:
            content = array_piece(number)
            word = self.offer(asked, session, name_of(content) if give_up else missing(number), content)
            if word == "taken":
                taken += len(content)
                continue
            said.append(word)
            if give_up:
                break
        return taken, said

    def offer(self, asked, session: str, name: str, content: bytes) -> str:
        """Send one piece -> "taken", or the name of the error."""
        try:
            self.push(asked.metadata.run_id, session, name, content)
        except Exception as error:
            return type(error).__name__
        return "taken"


def set_all(value: float):
    def change(header, tensors):
        for array in tensors.values():
            array[...] = value

    return change


def first(change):
    def applied(header, tensors):
        name = sorted(tensors)[0]
        tensors[name] = change(tensors[name])

    return applied


CHANGES = {
    "honest": lambda header, tensors: None,
    "wide": lambda header, tensors: [array.__iadd__(0.5) for array in tensors.values()],
    "nan": first(lambda array: np.full_like(array, np.nan)),
    "huge": set_all(1e30),
    "shape": first(lambda array: np.zeros((3, *array.shape), np.float32)),
    "dtype": first(lambda array: array.astype(np.float64)),
    "extra": lambda header, tensors: tensors.update(extra=np.zeros(3, np.float32)),
    "stale": lambda header, tensors: header.update(round=header["round"] + 1),
    "named": lambda header, tensors: header.update(site="east"),
    "rollback": lambda header, tensors: header.update(ledger_entries=1, ledger_recent=header["ledger_head"][:8]),
}


def main(folder: Path, address: str, tricks: list[str]) -> None:
    connection.flwr_exit = lambda *words: sys.exit(1)  # Flower's own ends the process later, caught or not
    key = load_ssh_private_key((folder / "keys" / "site_key").read_bytes(), None)
    while True:
        try:
            with connection.grpc_request_response(
                address,
                False,
                make_simple_grpc_retry_invoker(),
                root_certificates=(folder / "keys" / "ca.crt").read_bytes(),
                authentication_keys=(key, key.public_key()),
            ) as link:
                serve(HostileSite(folder, link), tricks)
        except SystemExit:  # not let in yet
            time.sleep(1)


def serve(site: HostileSite, tricks: list[str]) -> None:
    """Answer whatever is asked."""
    while True:
        if (asked := site.question()) is None:
            time.sleep(0.5)
        elif asked.metadata.message_type == "train":
            number = asked.content["header"]["round"]
            site.note(round=number, trick=tricks[number - 1])
            site.play(tricks[number - 1], asked)
        else:
            site.approve(asked)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","))
