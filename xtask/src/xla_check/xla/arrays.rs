//! Arrays of all replicas in a file: a line of JSON that lists them, then their bytes in that order, little endian.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context;
use njoule_hlo::{ArrayShape, DType, Tensor};

pub fn write(path: &Path, replicas: &[Vec<Tensor>]) -> anyhow::Result<()> {
    let entry = |(replica, tensor): (usize, &Tensor)| {
        let shape = tensor.shape();
        serde_json::json!({ "replica": replica, "dtype": shape.dtype().to_string(), "dims": shape.dims().to_vec() })
    };
    let all = || replicas.iter().enumerate().flat_map(|(r, tensors)| tensors.iter().map(move |t| (r, t)));
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "{}", serde_json::Value::from(all().map(entry).collect::<Vec<_>>()))?;
    for (_, tensor) in all() {
        file.write_all(&tensor.to_bytes())?;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

pub fn read(path: &Path) -> anyhow::Result<Vec<Vec<Tensor>>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut header = String::new();
    file.read_line(&mut header)?;
    let entries: Vec<serde_json::Value> = serde_json::from_str(&header)?;
    let mut replicas: Vec<Vec<Tensor>> = vec![];
    for entry in entries {
        let dtype = DType::ALL.into_iter().find(|t| Some(t.to_string().as_str()) == entry["dtype"].as_str());
        let dims: Option<Vec<usize>> =
            entry["dims"].as_array().map(|d| d.iter().filter_map(|n| n.as_u64()).map(|n| n as usize).collect());
        let shape = dtype.zip(dims).and_then(|(dtype, dims)| ArrayShape::new(dtype, &dims));
        let shape = shape.with_context(|| format!("no array: {entry}"))?;
        let mut bytes = vec![0; shape.bytes()];
        file.read_exact(&mut bytes)?;
        let replica = entry["replica"].as_u64().unwrap_or(0) as usize;
        replicas.resize_with(replicas.len().max(replica + 1), Vec::new);
        replicas[replica].push(Tensor::from_bytes(shape, &bytes)?);
    }
    Ok(replicas)
}
