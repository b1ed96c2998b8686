"""Builds and searches one vector library's index, told by lines of JSON on standard input, one answer a line on standard output.

Invariant: the vectors come from files and go in as they are; a search's time covers the library's own call and nothing else.
Must not know what is right.

    {"do": "build", "base": FILE, "dim": N, "threads": N}        {"seconds": F, "settings": TEXT}
    {"do": "search", "queries": FILE, "k": N, "width": N, "single": BOOL, "out": FILE}
                                                                 {"seconds": F, "ns": [N, ...] or null}
    {"do": "convert", "file": HDF5, "into": FOLDER}              {"distance": TEXT or null, "dim": N}

Files of vectors are f32 and of answers u32, little-endian, row by row, `k` a query, 4294967295 where there is none.
"""

import json
import os
import sys
import time

import numpy as np

M = 16
EF_CONSTRUCTION = 200
NONE = np.uint32(0xFFFFFFFF)


class Hnswlib:
    SETTINGS = f"f32, inner product, M {M}, ef_construction {EF_CONSTRUCTION}"

    def __init__(self, rows, threads):
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=rows.shape[1])
        self.index.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCTION, random_seed=100)
        self.index.set_num_threads(threads)
        self.index.add_items(rows, num_threads=threads)
        self.index.set_num_threads(1)

    def search(self, queries, k, width):
        self.index.set_ef(max(width, k))
        return self.index.knn_query(queries, k=k, num_threads=1)[0]


class Usearch:
    SETTINGS = f"bf16, inner product, connectivity {M}, expansion_add {EF_CONSTRUCTION}"

    def __init__(self, rows, threads):
        from usearch.index import Index

        self.index = Index(
            ndim=rows.shape[1], metric="ip", dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION
        )
        self.index.add(np.arange(len(rows), dtype=np.uint64), rows, threads=threads)

    def search(self, queries, k, width):
        self.index.expansion_search = max(width, k)
        found = self.index.search(queries, k, threads=1).keys
        return found.reshape(len(queries), -1)


class Faiss:
    SETTINGS = f"IndexHNSWFlat, inner product, M {M}, efConstruction {EF_CONSTRUCTION}"

    def __init__(self, rows, threads):
        import faiss

        self.faiss = faiss
        faiss.omp_set_num_threads(threads)
        self.index = faiss.IndexHNSWFlat(rows.shape[1], M, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = EF_CONSTRUCTION
        self.index.add(rows)
        faiss.omp_set_num_threads(1)

    def search(self, queries, k, width):
        self.index.hnsw.efSearch = max(width, k)
        return self.index.search(queries, k)[1]


class Symqg:
    # Of unit vectors the nearest are the same by both; its inner product finds fewer of them.
    SETTINGS = f"SymphonyQG, degree 32, L2, ef_construction {EF_CONSTRUCTION}, built at once by PiPNN"

    def __init__(self, rows, threads):
        import rabitqlib

        self.index = rabitqlib.SymqgIndex(rows.shape[1], 32, "l2")
        self.index.build(rows, EF_CONSTRUCTION, num_threads=threads)

    def search(self, queries, k, width):
        return self.index.search(queries, k, max(width, k), num_threads=1)[0]


class RabitqHnsw:
    SETTINGS = f"RaBitQ HNSW, 8 bits, L2, M {M}, ef_construction {EF_CONSTRUCTION}, 16 centroids"

    def __init__(self, rows, threads):
        import rabitqlib

        means = rabitqlib.RaBitQKMeans(rows.shape[1], 16)
        means.train(rows)
        self.index = rabitqlib.HnswIndex(rows.shape[1], len(rows), M, EF_CONSTRUCTION, 8, "l2")
        self.index.build(rows, means.centroids, means.assignments, num_threads=threads)

    def search(self, queries, k, width):
        return self.index.search(queries, k, max(width, k), num_threads=1)[0]


class Voyager:
    SETTINGS = f"f32, inner product, M {M}, ef_construction {EF_CONSTRUCTION}"

    def __init__(self, rows, threads):
        from voyager import Index, Space

        self.index = Index(
            Space.InnerProduct, num_dimensions=rows.shape[1], M=M, ef_construction=EF_CONSTRUCTION,
            max_elements=len(rows),
        )
        self.index.add_items(rows, num_threads=threads)

    def search(self, queries, k, width):
        return self.index.query(queries, k=k, num_threads=1, query_ef=max(width, k))[0]


PEERS = {
    "hnswlib": Hnswlib, "usearch": Usearch, "faiss": Faiss, "symqg": Symqg, "rabitq-hnsw": RabitqHnsw,
    "voyager": Voyager,
}


def read(path, dim):
    rows = np.fromfile(path, dtype="<f4")
    return rows.reshape(-1, dim)


def search(index, request, dim):
    queries, k, width = read(request["queries"], dim), request["k"], request["width"]
    ns = None
    if request["single"]:
        found, ns = [], []
        for at in range(len(queries)):
            one = queries[at : at + 1]
            begun = time.perf_counter_ns()
            row = index.search(one, k, width)
            ns.append(time.perf_counter_ns() - begun)
            found.append(np.asarray(row).reshape(-1))
        seconds = sum(ns) / 1e9
        found = np.stack(found)
    else:
        begun = time.perf_counter()
        found = index.search(queries, k, width)
        seconds = time.perf_counter() - begun
    out = np.full((len(queries), k), NONE, dtype="<u4")
    found = np.asarray(found)
    out[:, : found.shape[1]] = np.where(found < 0, NONE, found).astype("<u4") if found.dtype.kind == "i" else found
    out.tofile(request["out"])
    return {"seconds": seconds, "ns": ns}


def convert(request):
    import h5py

    with h5py.File(request["file"], "r") as data:
        for name in ("train", "test"):
            np.asarray(data[name], dtype="<f4").tofile(os.path.join(request["into"], name))
        distance = data.attrs.get("distance")
        return {"distance": distance if distance is None else str(distance), "dim": int(data["train"].shape[1])}


def main():
    index, dim = None, None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "build":
            dim = request["dim"]
            rows = read(request["base"], dim)
            kind = PEERS[request["peer"]]
            begun = time.perf_counter()
            index = kind(rows, request["threads"])
            answer = {"seconds": time.perf_counter() - begun, "settings": kind.SETTINGS}
        elif request["do"] == "search":
            answer = search(index, request, dim)
        else:
            answer = convert(request)
        print(json.dumps(answer), flush=True)


main()
