"""Serves one peer of Flashbulb with Flashbulb's own protocol, so that one generator can measure both.

Invariant: what a search does here is what the peer's documentation tells its user to do, text in and memories out, in
this one process; `took_us.total` leaves out reading the request and writing the answer. Must not know what is measured.

Newline-delimited JSON-RPC 2.0 on a Unix socket, one thread a connection.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import sys
import threading
import time
import traceback

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

PACKAGES = ("chromadb", "lancedb", "numpy", "onnxruntime", "tokenizers")
# Texts of one call of the peer's own `add` in an import.
FEED_BATCH = 100
# Rows of one call while the index is filled.
FILL_BATCH = 5_000
# The window of the default model; what is longer is cut, as its users' libraries do.
MAX_TOKENS = 256


class BadRequest(Exception):
    """A request that is the caller's fault."""


class Model:
    """Text to a unit vector: batch 1, exact length, no padding."""

    def __init__(self, graph, tokenizer, threads):
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.types = {i.name: np.int64 if "int64" in i.type else np.int32 for i in self.session.get_inputs()}
        unknown = set(self.types) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise ValueError(f"{graph} has inputs that are none of a BERT-like model: {sorted(unknown)}")
        self.local = threading.local()

    def embed(self, text):
        begun = time.perf_counter_ns()
        ids = self.tokenizer.encode(text).ids
        rows = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
        feed = {name: np.array([rows[name]], dtype) for name, dtype in self.types.items()}
        vector = self.session.run(None, feed)[0][0]
        self.local.ns = time.perf_counter_ns() - begun
        return vector

    def last_ns(self):
        """How long this thread's last text took."""
        return self.local.ns


class Chroma:
    """A persistent client; HNSW over cosine with the default settings; the model behind Chroma's own interface."""

    PACKAGE = "chromadb"
    SETTINGS = "PersistentClient, HNSW with its default settings, cosine"

    def __init__(self, folder, model):
        import chromadb
        from chromadb.api.types import EmbeddingFunction

        class Embedding(EmbeddingFunction):
            def __init__(self):
                pass

            def __call__(self, input):
                return [model.embed(text) for text in input]

            @staticmethod
            def name():
                return "flashbulb_bench"

            def get_config(self):
                return {}

            @staticmethod
            def build_from_config(config):
                return Embedding()

        self.model = model
        self.function = Embedding()
        settings = chromadb.Settings(anonymized_telemetry=False)
        self.client = chromadb.PersistentClient(folder, settings=settings)
        self.memories = self.collection("memories")

    def collection(self, name):
        return self.client.get_or_create_collection(
            name, configuration={"hnsw": {"space": "cosine"}}, embedding_function=self.function
        )

    def fill(self, ids, texts, vectors):
        size = min(FILL_BATCH, self.client.get_max_batch_size())
        for at in range(0, len(ids), size):
            rows = slice(at, at + size)
            self.memories.add(ids=ids[rows], documents=texts[rows], embeddings=vectors[rows])

    def index(self):
        # The index takes its last rows from the log with the next query.
        self.memories.query(query_texts=["ready"], n_results=1)

    def search(self, query, k):
        found = self.memories.query(query_texts=[query], n_results=k, include=["documents", "distances"])
        return zip(found["ids"][0], found["documents"][0], (1 - d for d in found["distances"][0]))

    def feed_begin(self):
        self.feed_end()
        self.feed = self.collection("feed")

    def feed_add(self, ids, texts):
        self.feed.add(ids=ids, documents=texts)

    def feed_end(self):
        if any(c.name == "feed" for c in self.client.list_collections()):
            self.client.delete_collection("feed")


class LanceDb:
    """A table searched by an index of HNSW over scalar quantisation, refined with the whole vectors."""

    PACKAGE = "lancedb"
    REFINE = 5
    SETTINGS = f"table with IVF_HNSW_SQ in one partition, cosine, refine_factor {REFINE}"

    def __init__(self, folder, model):
        import lancedb
        import pyarrow

        self.arrow = pyarrow
        self.model = model
        self.db = lancedb.connect(folder)
        self.memories = self.table("memories")

    def table(self, name):
        width = len(self.model.embed("width"))
        pa = self.arrow
        fields = [("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), width))]
        return self.db.create_table(name, schema=pa.schema(fields), exist_ok=True)

    def rows(self, ids, texts, vectors):
        pa = self.arrow
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return pa.table({"id": ids, "text": texts, "vector": column})

    def fill(self, ids, texts, vectors):
        for at in range(0, len(ids), FILL_BATCH):
            rows = slice(at, at + FILL_BATCH)
            self.memories.add(self.rows(ids[rows], texts[rows], vectors[rows]))

    def index(self):
        from lancedb.index import HnswSq

        # One partition: what its documentation recommends for most tables.
        self.memories.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=1))
        self.memories.optimize()

    def refined(self, query):
        return query.refine_factor(self.REFINE)

    def search(self, query, k):
        wanted = self.memories.search(self.model.embed(query), vector_column_name="vector")
        wanted = self.refined(wanted.distance_type("cosine").limit(k))
        found = wanted.select(["id", "text", "_distance"]).to_list()
        return ((row["id"], row["text"], 1 - row["_distance"]) for row in found)

    def feed_begin(self):
        self.feed_end()
        self.feed = self.table("feed")

    def feed_add(self, ids, texts):
        self.feed.add(self.rows(ids, texts, np.array([self.model.embed(text) for text in texts])))

    def feed_end(self):
        self.db.drop_table("feed", ignore_missing=True)


class LanceDbFlat(LanceDb):
    """The same table without an index: every search reads all vectors, so its recall is 1."""

    SETTINGS = "table without an index (exact scan), cosine"

    def index(self):
        self.memories.optimize()

    def refined(self, query):
        return query


PEERS = {"chroma": Chroma, "lancedb": LanceDb, "lancedb-flat": LanceDbFlat}


class Feed:
    """An import that never ends, in a thread of this process."""

    def __init__(self, peer, texts):
        self.peer = peer
        self.texts = texts
        self.added = 0
        self.error = None
        self.stopping = threading.Event()
        peer.feed_begin()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            while not self.stopping.is_set():
                numbers = range(self.added, self.added + FEED_BATCH)
                self.peer.feed_add([f"f{n}" for n in numbers], [self.text(n) for n in numbers])
                self.added += FEED_BATCH
        except Exception as error:
            traceback.print_exc()
            self.error = error

    def text(self, number):
        # A number makes a text new again.
        turn, at = divmod(number, len(self.texts))
        return f"{self.texts[at]} {turn}" if turn else self.texts[at]

    def count(self):
        if self.error:
            raise RuntimeError(f"the import ended: {self.error}")
        return self.added

    def stop(self):
        self.stopping.set()
        self.thread.join()
        added = self.count()
        self.peer.feed_end()
        return added


class Service:
    """The methods."""

    def __init__(self, name, folder, model):
        self.name = name
        self.model = model
        self.peer = PEERS[name](folder, model)
        self.feed = None
        self.ended = threading.Event()
        self.methods = {
            "memory.search": self.search,
            "peer.about": self.about,
            "peer.embed": self.embed,
            "peer.fill": self.fill,
            "feed.start": self.feed_start,
            "feed.count": self.feed_count,
            "feed.stop": self.feed_stop,
            "admin.shutdown": self.shutdown,
        }

    def search(self, params):
        query, k = params.get("query"), params.get("k", 10)
        if not isinstance(query, str) or not query.strip():
            raise BadRequest("query must be a text that is not empty")
        if not isinstance(k, int) or k < 1:
            raise BadRequest("k must be a whole number of at least 1")
        begun = time.perf_counter_ns()
        hits, seen = [], set()
        for row, text, score in self.peer.search(query, k):
            # A long memory has several rows; the best one stands for it.
            memory = int(row.partition(".")[0])
            if memory not in seen:
                seen.add(memory)
                hits.append({"id": row, "seq": memory, "text": text, "score": float(score)})
        total = time.perf_counter_ns() - begun
        embed = self.model.last_ns()
        took = {"embed": embed, "dense": total - embed, "total": total}
        return {"hits": hits, "took_us": {stage: ns // 1000 for stage, ns in took.items()}}

    def about(self, _):
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {
            "python": platform.python_version(),
            "versions": versions,
            "package": self.peer.PACKAGE,
            "settings": self.peer.SETTINGS,
        }

    def embed(self, params):
        return {"vector": self.model.embed(params["text"]).tolist()}

    def fill(self, params):
        with open(params["texts"], encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        ids, texts = [row["id"] for row in rows], [row["text"] for row in rows]
        vectors = np.load(params["vectors"])
        if len(vectors) != len(ids):
            raise BadRequest(f"{len(ids)} texts, {len(vectors)} vectors")
        begun = time.perf_counter()
        self.peer.fill(ids, texts, vectors)
        filled = time.perf_counter()
        self.peer.index()
        return {"seconds": filled - begun, "indexed_after_s": time.perf_counter() - begun}

    def feed_start(self, params):
        if self.feed:
            raise BadRequest("an import runs already")
        with open(params["texts"], encoding="utf-8") as file:
            self.feed = Feed(self.peer, file.read().splitlines())
        return {}

    def feed_count(self, _):
        return {"added": self.running().count()}

    def feed_stop(self, _):
        feed, self.feed = self.running(), None
        return {"added": feed.stop()}

    def running(self):
        if not self.feed:
            raise BadRequest("no import runs")
        return self.feed

    def shutdown(self, _):
        self.ended.set()
        return {}

    def answer(self, line):
        number = None
        try:
            request = json.loads(line)
            number = request.get("id")
            method = self.methods.get(request.get("method"))
            if method is None:
                return failed(number, -32601, f"there is no method {request.get('method')!r}")
            return {"jsonrpc": "2.0", "id": number, "result": method(request.get("params", {}))}
        except BadRequest as error:
            return failed(number, -32602, str(error))
        except json.JSONDecodeError as error:
            return failed(number, -32700, str(error))
        except Exception as error:
            traceback.print_exc()
            return failed(number, -32603, f"{type(error).__name__}: {error}")


def failed(number, code, message):
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}


def converse(service, connection):
    with connection, connection.makefile("rb") as lines:
        try:
            for line in lines:
                connection.sendall(json.dumps(service.answer(line)).encode() + b"\n")
        except OSError:
            # The caller is gone; nobody is left to be told.
            return


def accept(service, listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=converse, args=(service, connection), daemon=True).start()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True, choices=PEERS)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--graph", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--threads", required=True, type=int)
    arguments = parser.parse_args()
    model = Model(arguments.graph, arguments.tokenizer, arguments.threads)
    service = Service(arguments.peer, arguments.folder, model)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(arguments.socket)
    listener.listen(64)
    threading.Thread(target=accept, args=(service, listener), daemon=True).start()
    service.ended.wait()
    # The last answer is on its way; threads of the peer's own must not keep the process.
    time.sleep(0.1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
