"""Builds and searches one vector library's index, told by lines of JSON on standard input, one answer a line on standard output.

Invariant: the vectors come from files and go in as they are; a search's time covers the library's own call and nothing else.
Must not know what is right.

    {"do": "build", "peer": TEXT, "base": FILE, "dim": N, "metric": METRIC, "threads": N}
                                                                 {"seconds": F, "settings": TEXT}
    {"do": "search", "queries": FILE, "k": N, "width": N, "single": BOOL, "out": FILE}
                                                                 {"seconds": F, "ns": [N, ...] or null}
    {"do": "convert", "file": HDF5, "into": FOLDER}              {"distance": TEXT or null, "dim": N}

METRIC is "cosine", "l2" or "dot"; for the cosine all vectors are of unit length. Files of vectors are f32 and of answers u32,
little-endian, row by row, `k` a query, 4294967295 where there is none.
"""

import json
import os
import sys
import time

import numpy as np

M = 16
EF_CONSTRUCTION = 200
NONE = np.uint32(0xFFFFFFFF)
# Of unit vectors the nearest are the same by inner product, which needs no lengths.
BY_PRODUCT = {"cosine": "inner product", "l2": "L2", "dot": "inner product"}
# And they are the same by L2; by inner product rabitqlib finds fewer of them.
BY_DISTANCE = {"cosine": "L2", "l2": "L2", "dot": "inner product"}


class Hnswlib:
    def __init__(self, rows, metric, threads):
        import hnswlib

        self.settings = f"f32, {BY_PRODUCT[metric]}, M {M}, ef_construction {EF_CONSTRUCTION}"
        space = "l2" if metric == "l2" else "ip"
        self.index = hnswlib.Index(space=space, dim=rows.shape[1])
        self.index.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCTION, random_seed=100)
        self.index.set_num_threads(threads)
        self.index.add_items(rows, num_threads=threads)
        self.index.set_num_threads(1)

    def search(self, queries, k, width):
        self.index.set_ef(max(width, k))
        return self.index.knn_query(queries, k=k, num_threads=1)[0]


class Usearch:
    def __init__(self, rows, metric, threads):
        from usearch.index import Index

        self.settings = f"bf16, {BY_PRODUCT[metric]}, connectivity {M}, expansion_add {EF_CONSTRUCTION}"
        kind = "l2sq" if metric == "l2" else "ip"
        self.index = Index(
            ndim=rows.shape[1], metric=kind, dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION
        )
        self.index.add(np.arange(len(rows), dtype=np.uint64), rows, threads=threads)

    def search(self, queries, k, width):
        self.index.expansion_search = max(width, k)
        found = self.index.search(queries, k, threads=1).keys
        return found.reshape(len(queries), -1)


class Faiss:
    def __init__(self, rows, metric, threads):
        import faiss

        self.settings = f"IndexHNSWFlat, {BY_PRODUCT[metric]}, M {M}, efConstruction {EF_CONSTRUCTION}"
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        faiss.omp_set_num_threads(threads)
        self.index = faiss.IndexHNSWFlat(rows.shape[1], M, kind)
        self.index.hnsw.efConstruction = EF_CONSTRUCTION
        self.index.add(rows)
        faiss.omp_set_num_threads(1)

    def search(self, queries, k, width):
        self.index.hnsw.efSearch = max(width, k)
        return self.index.search(queries, k)[1]


class Symqg:
    def __init__(self, rows, metric, threads):
        import rabitqlib

        by = BY_DISTANCE[metric]
        self.settings = f"SymphonyQG, degree 32, {by}, ef_construction {EF_CONSTRUCTION}, built at once by PiPNN"
        self.index = rabitqlib.SymqgIndex(rows.shape[1], 32, "ip" if metric == "dot" else "l2")
        self.index.build(rows, EF_CONSTRUCTION, num_threads=threads)

    def search(self, queries, k, width):
        return self.index.search(queries, k, max(width, k), num_threads=1)[0]


class RabitqHnsw:
    def __init__(self, rows, metric, threads):
        import rabitqlib

        by = BY_DISTANCE[metric]
        self.settings = f"RaBitQ HNSW, 8 bits, {by}, M {M}, ef_construction {EF_CONSTRUCTION}, 16 centroids"
        kind = "ip" if metric == "dot" else "l2"
        means = rabitqlib.RaBitQKMeans(rows.shape[1], 16)
        means.train(rows)
        self.index = rabitqlib.HnswIndex(rows.shape[1], len(rows), M, EF_CONSTRUCTION, 8, kind)
        self.index.build(rows, means.centroids, means.assignments, num_threads=threads)

    def search(self, queries, k, width):
        return self.index.search(queries, k, max(width, k), num_threads=1)[0]


class Voyager:
    def __init__(self, rows, metric, threads):
        from voyager import Index, Space

        # Its inner product has one component more, and is slower than its cosine.
        kinds = {"cosine": Space.Cosine, "l2": Space.Euclidean, "dot": Space.InnerProduct}
        by = "cosine" if metric == "cosine" else BY_PRODUCT[metric]
        self.settings = f"f32, {by}, M {M}, ef_construction {EF_CONSTRUCTION}"
        self.index = Index(
            kinds[metric], num_dimensions=rows.shape[1], M=M, ef_construction=EF_CONSTRUCTION,
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
        # Text of a fixed length comes as bytes.
        distance = distance.decode() if isinstance(distance, bytes) else distance
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
            index = kind(rows, request["metric"], request["threads"])
            answer = {"seconds": time.perf_counter() - begun, "settings": index.settings}
        elif request["do"] == "search":
            answer = search(index, request, dim)
        else:
            answer = convert(request)
        print(json.dumps(answer), flush=True)


main()
