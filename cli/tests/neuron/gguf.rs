//! A GGUF file cut into two, with rotary divisors added: what Llama 3.1's files are, in small.

/// Parts 1 and 2 of `file`; the second gets `rope_freqs.weight`.
pub fn split_with_divisors(file: &[u8]) -> [Vec<u8>; 2] {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let (tensors, entries) = (u64_at(8), u64_at(16));
    let mut at = 24;
    let mut head_dim = 0;
    let (mut embedding, mut heads) = (0, 1);
    for _ in 0..entries {
        let key = String::from_utf8(file[at + 8..at + 8 + u64_at(at)].to_vec()).unwrap();
        at += 8 + key.len();
        let value = at + 4;
        match key.as_str() {
            "llama.embedding_length" => embedding = u32_at(value),
            "llama.attention.head_count" => heads = u32_at(value),
            "llama.rope.dimension_count" | "llama.attention.key_length" => head_dim = u32_at(value),
            _ => {}
        }
        at = after(file, value, u32_at(at));
    }
    if head_dim == 0 {
        head_dim = embedding / heads;
    }
    let (entry_bytes, mut infos) = (&file[24..at], vec![]);
    for _ in 0..tensors {
        let start = at;
        at += 8 + u64_at(at);
        at += 4 + 8 * u32_at(at) + 4;
        infos.push((file[start..at].to_vec(), u64_at(at)));
        at += 8;
    }
    let data = at.next_multiple_of(32);
    let end = |i: usize| infos.iter().map(|(_, o)| *o).filter(|o| *o > infos[i].1).min().unwrap_or(file.len() - data);
    let divisors: Vec<u8> = (0..head_dim / 2).flat_map(|i| (1.0 + i as f32).to_le_bytes()).collect();
    let name = b"rope_freqs.weight";
    let mut info = (name.len() as u64).to_le_bytes().to_vec();
    info.extend(name);
    info.extend(1u32.to_le_bytes());
    info.extend((head_dim as u64 / 2).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    let mut of_part = [vec![], vec![(info, divisors)]];
    for (i, (info, offset)) in infos.iter().enumerate() {
        of_part[i % 2].push((info.clone(), file[data + offset..data + end(i)].to_vec()));
    }
    let part = |number: usize| {
        let entry = |key: &str, value: u32| {
            [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &4u32.to_le_bytes(), &value.to_le_bytes()].concat()
        };
        let own = [entry("split.count", 2), entry("split.no", number as u32)].concat();
        let (others, count) = if number == 0 { (entry_bytes, entries + 2) } else { (&[][..], 2) };
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((of_part[number].len() as u64).to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend([others, &own].concat());
        let mut offset = 0usize;
        for (info, data) in &of_part[number] {
            bytes.extend(info);
            bytes.extend((offset as u64).to_le_bytes());
            offset = (offset + data.len()).next_multiple_of(32);
        }
        for (_, data) in &of_part[number] {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes
    };
    [part(0), part(1)]
}

/// Where a value of type `kind` that starts at `at` ends.
fn after(file: &[u8], at: usize, kind: usize) -> usize {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    match kind {
        0 | 1 | 7 => at + 1,
        2 | 3 => at + 2,
        4..=6 => at + 4,
        8 => at + 8 + u64_at(at),
        9 => {
            let of = u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
            (0..u64_at(at + 4)).fold(at + 12, |at, _| after(file, at, of))
        }
        _ => at + 8,
    }
}
