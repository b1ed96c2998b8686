//! Files of vectors: NumPy's `.npy`, `.fvecs` and `.ivecs` of the TEXMEX corpora, and raw rows between processes.
//!
//! Invariant: what is returned is whole rows of finite numbers; a file that is something else is refused with what is wrong and
//! where. Must not know what the vectors are for.
//!
//! Sources: NumPy's `numpy.lib.format` (versions 1.0 to 3.0), corpus-texmex.irisa.fr for the others.

use std::path::Path;

use crate::Failure;

/// Vectors of one length, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    pub dim: usize,
    pub values: Vec<f32>,
}

/// Reads vectors by the name's end: `.npy` or `.fvecs`.
///
/// # Errors
/// If the file cannot be read, or is no such file.
pub fn read(path: &Path) -> Result<Rows, Failure> {
    let bytes = whole(path)?;
    let rows = match ending(path) {
        "npy" => npy(&bytes),
        "fvecs" => vecs(&bytes, f32::from_le_bytes).map(|(dim, values)| Rows { dim, values }),
        other => {
            Err(format!("`.{other}` is no ending of a file of vectors; name .npy, .fvecs or .hdf5"))
        }
    };
    let rows = rows.map_err(|what| format!("{}: {what}", path.display()))?;
    match rows.values.iter().position(|v| !v.is_finite()) {
        Some(at) => {
            Err(format!("{}: row {} holds {}", path.display(), at / rows.dim, rows.values[at])
                .into())
        }
        None => Ok(rows),
    }
}

/// Reads neighbours, nearest first, from `.ivecs`; beside them, how many each query has.
///
/// # Errors
/// If the file cannot be read, or is no such file.
pub fn neighbours(path: &Path) -> Result<(usize, Vec<u32>), Failure> {
    let found = vecs(&whole(path)?, u32::from_le_bytes);
    Ok(found.map_err(|what| format!("{}: {what}", path.display()))?)
}

/// The name's end.
pub fn ending(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

/// Reads rows of f32 without any head.
///
/// # Errors
/// If the file cannot be read, or does not hold whole rows.
pub fn raw(path: &Path, dim: usize) -> Result<Vec<f32>, Failure> {
    let bytes = whole(path)?;
    let values = words(&bytes, f32::from_le_bytes);
    if !bytes.len().is_multiple_of(4) || dim == 0 || !values.len().is_multiple_of(dim) {
        return Err(format!("{} does not hold whole rows of {dim}", path.display()).into());
    }
    Ok(values)
}

/// Writes f32 without any head.
///
/// # Errors
/// What the file system says.
pub fn write_f32(path: &Path, values: &[f32]) -> Result<(), Failure> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(std::fs::write(path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?)
}

/// Writes u32 without any head.
///
/// # Errors
/// What the file system says.
pub fn write_u32(path: &Path, values: &[u32]) -> Result<(), Failure> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(std::fs::write(path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?)
}

/// Reads u32 without any head.
///
/// # Errors
/// If the file cannot be read.
pub fn read_u32(path: &Path) -> Result<Vec<u32>, Failure> {
    Ok(words(&whole(path)?, u32::from_le_bytes))
}

fn whole(path: &Path) -> Result<Vec<u8>, Failure> {
    Ok(std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?)
}

fn words<T>(bytes: &[u8], of: fn([u8; 4]) -> T) -> Vec<T> {
    bytes.as_chunks::<4>().0.iter().map(|word| of(*word)).collect()
}

/// Each row has its length before it, in 4 bytes.
fn vecs<T>(bytes: &[u8], of: fn([u8; 4]) -> T) -> Result<(usize, Vec<T>), String> {
    let first = bytes.first_chunk::<4>().ok_or("it is empty")?;
    let dim = u32::from_le_bytes(*first) as usize;
    let row = 4 + 4 * dim;
    if dim == 0 || dim > 1 << 20 || !bytes.len().is_multiple_of(row) {
        return Err(format!("{} bytes are not whole rows of {dim} numbers", bytes.len()));
    }
    let mut values = Vec::with_capacity(bytes.len() / 4);
    for (at, row) in bytes.chunks_exact(row).enumerate() {
        if row.first_chunk() != Some(first) {
            return Err(format!("row {at} has another length than the first"));
        }
        values.extend(words(&row[4..], of));
    }
    Ok((dim, values))
}

fn npy(bytes: &[u8]) -> Result<Rows, String> {
    let version = bytes.strip_prefix(b"\x93NUMPY").and_then(|b| b.first_chunk::<2>());
    let (at, len): (usize, _) = match version {
        Some([1, _]) => (10, bytes.get(8..10).map(|b| usize::from(b[0]) | usize::from(b[1]) << 8)),
        Some([2 | 3, _]) => {
            let word = bytes.get(8..12).and_then(|b| b.first_chunk());
            (12, word.map(|b| u32::from_le_bytes(*b) as usize))
        }
        _ => return Err("it is no .npy file of version 1 to 3".into()),
    };
    let end = len.and_then(|len| at.checked_add(len)).filter(|end| *end <= bytes.len());
    let end = end.ok_or("its head is cut short")?;
    let head = String::from_utf8_lossy(&bytes[at..end]);
    let value = |key: &str| {
        let rest = head.split_once(&format!("'{key}'"))?.1.trim_start().strip_prefix(':')?;
        Some(rest.trim_start())
    };
    if !value("descr").is_some_and(|v| v.starts_with("'<f4'")) {
        return Err("its numbers are not little-endian f32 (dtype '<f4')".into());
    }
    if !value("fortran_order").is_some_and(|v| v.starts_with("False")) {
        return Err("it is not in C order".into());
    }
    let shape = value("shape").and_then(|v| v.strip_prefix('(')?.split_once(')'));
    let shape: Result<Vec<usize>, _> = shape
        .map_or("", |(inside, _)| inside)
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::parse)
        .collect();
    let (count, dim) = match shape.as_deref() {
        Ok([count, dim]) if *dim > 0 => (*count, *dim),
        _ => return Err("its shape is not (rows, numbers in a row)".into()),
    };
    let values = words(&bytes[end..], f32::from_le_bytes);
    if count.checked_mul(dim) != Some(values.len()) || !(bytes.len() - end).is_multiple_of(4) {
        return Err(format!("it holds {} numbers, not {count} rows of {dim}", values.len()));
    }
    Ok(Rows { dim, values })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn npy_bytes(head: &str, values: &[f32]) -> Vec<u8> {
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend_from_slice(&u16::try_from(head.len()).unwrap().to_le_bytes());
        out.extend_from_slice(head.as_bytes());
        values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        out
    }

    /// As `numpy.save` of NumPy 2.4 wrote `numpy.float32([[1, 2, 3], [4, 5, 6]])`.
    const HEAD: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }                                                          \n";

    #[test]
    fn what_numpy_wrote_is_read_and_what_is_something_else_is_refused() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (_dir, path) = written("a.npy", &npy_bytes(HEAD, &values));
        assert_eq!(read(&path).unwrap(), Rows { dim: 3, values: values.to_vec() });
        for (head, values, what) in [
            (HEAD.replace("<f4", "<f8"), values, "f32"),
            (HEAD.replace("False", "True"), values, "C order"),
            (HEAD.replace("(2, 3)", "(6,)"), values, "shape"),
            (HEAD.replace("(2, 3)", "(3, 3)"), values, "not 3 rows of 3"),
            (HEAD.to_owned(), [1.0, 2.0, f32::NAN, 4.0, 5.0, 6.0], "row 0 holds NaN"),
        ] {
            let (_dir, path) = written("a.npy", &npy_bytes(&head, &values));
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        for bytes in [&b"\x93NUMPY\x01\x00\xff\xff{"[..], b"NUMPY", b""] {
            let (_dir, path) = written("a.npy", bytes);
            assert!(read(&path).is_err());
        }
    }

    #[test]
    fn rows_with_their_length_before_them_are_read_and_cut_ones_refused() {
        let mut bytes = Vec::new();
        for row in [[1.0f32, 2.0], [3.0, 4.0]] {
            bytes.extend_from_slice(&2u32.to_le_bytes());
            row.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        }
        let (_dir, path) = written("a.fvecs", &bytes);
        assert_eq!(read(&path).unwrap(), Rows { dim: 2, values: vec![1.0, 2.0, 3.0, 4.0] });
        let (_dir, path) = written("a.fvecs", &bytes[..bytes.len() - 1]);
        assert!(read(&path).unwrap_err().to_string().contains("whole rows"));
        bytes[12] = 3;
        let (_dir, path) = written("a.fvecs", &bytes);
        assert!(read(&path).unwrap_err().to_string().contains("row 1"));
        let (_dir, path) = written("a.txt", &bytes);
        assert!(read(&path).unwrap_err().to_string().contains(".npy, .fvecs or .hdf5"));
    }

    #[test]
    fn neighbours_are_whole_numbers() {
        let (_dir, path) = written("a.ivecs", &[2, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(neighbours(&path).unwrap(), (2, vec![7, 9]));
    }
}
