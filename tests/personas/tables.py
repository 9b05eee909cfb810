"""Tables as people have them, with what makes them awkward: made here, so that everyone can see how."""

import numpy as np
import pandas as pd


def scans(path, n=900, d=40):
    """Write 900 subjects x 40 measures: numbered sites of their own shift and spread, one measure with thousands."""
    rng = np.random.default_rng(1)
    site = rng.integers(1, 9, n)
    age = rng.uniform(18, 85, n).round(1)
    sex = rng.integers(0, 2, n)
    diagnosis = rng.choice(["AD", "CN", "MCI"], n)
    shift, spread = rng.normal(0, 0.8, (9, d)), rng.uniform(0.7, 1.4, 9)
    spread[5] = 3.0  # a scanner that went wrong
    loading = rng.normal(0, 0.5, d)
    values = rng.normal(size=(n, d)) * spread[site][:, None] + shift[site] - 0.03 * (age[:, None] - 50)
    values += (diagnosis == "AD")[:, None] * loading + 0.3 * sex[:, None]
    table = pd.DataFrame({"subject_id": np.arange(10_001, 10_001 + n), "site": site, "age": age, "sex": sex})
    table["diagnosis"] = diagnosis
    for j in range(d):
        table[f"v{j:02d}"] = (3000 + 400 * values[:, j]).round(1)
    table["v07"] = [f"{value:,.1f}" for value in table["v07"]]
    table["comment"] = np.where(rng.random(n) < 0.1, "moved", "")
    table.to_csv(path)  # with pandas' row numbers
    return table


def cells(path, n=600, d=300):
    """Write counts of 300 genes in 600 cells, sparse, with a batch effect, three kinds of cells, and 10 components."""
    import anndata
    from scipy import sparse

    rng = np.random.default_rng(2)
    batch, kind = rng.integers(0, 3, n), rng.integers(0, 3, n)
    rate = np.exp(rng.normal(-1, 1, d) + rng.normal(0, 1, (3, d))[kind] + rng.normal(0, 0.4, (3, d))[batch])
    rate[:, :20] = np.where(batch[:, None] == 1, 0.0, rate[:, :20])  # genes that one batch doesn't see
    counts = rng.poisson(rate).astype(np.float32)
    logs = np.log1p(counts)
    _, _, right = np.linalg.svd(logs - logs.mean(axis=0), full_matrices=False)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical([f"run {b}" for b in batch]),
            "n_counts": counts.sum(axis=1),
            "kind": kind.astype(str),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    adata = anndata.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=[f"gene{j}" for j in range(d)]))
    adata.obsm["X_pca"] = (logs - logs.mean(axis=0)) @ right[:10].T
    adata.write_h5ad(path)
    return adata


def survey(path, n=1500):
    """Write answers from 1 to 7 with gaps that together cost 42 % of the rows, and one "unknown" among the ages."""
    rng = np.random.default_rng(3)
    country = rng.choice(["de", "fr", "jp", "us"], n)
    age = rng.integers(18, 90, n).astype(float)
    trait = rng.choice([-1.0, 1.0], n)
    table = pd.DataFrame({"respondent": np.arange(n), "country": country, "Age (years)": age})
    for j in range(8):
        answer = 4 + 1.2 * trait + 0.4 * (country == "jp") - 0.01 * (age - 50) + rng.normal(size=n)
        table[f"q{j + 1}"] = np.where(rng.random(n) < 0.065, np.nan, answer.round(1))
    table.to_csv(path, index=False)
    return table


def embeddings(path, n=2000, d=32):
    """Write embeddings as lists of numbers, which lean to their source, beside texts and their lengths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(4)
    source, topic = rng.choice(["news", "web", "wiki"], n), rng.integers(0, 3, n)
    shift, centre = rng.normal(0, 0.7, (3, d)), rng.normal(0, 1.5, (3, d))
    values = rng.normal(size=(n, d)) + shift[np.unique(source, return_inverse=True)[1]] + centre[topic]
    columns = {
        "doc_id": pa.array([f"doc-{i}" for i in range(n)]),
        "source": pa.array(source),
        "text": pa.array(["lorem ipsum"] * n),
        "length": pa.array(rng.integers(10, 900, n)),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel().astype(np.float32)), d),
    }
    pq.write_table(pa.table(columns), path)
    return values, source, topic
