//! The content of one allocation: bytes to the host, typed tensors to a run, and neither copied for the other's sake.
//!
//! An allocation is cut into segments that cover it without gaps. A run isolates the part that an input is bound to and
//! keeps it as the evaluator's tensor from then on: weights are shared with the evaluator, in-place tensors move into it
//! and back. The host reads and writes typed segments in place. So a step costs what the evaluator costs.
//!
//! Memory that nobody wrote is one byte repeated, [`POISON`], which reads as NaN in every float type and as -1 in every
//! signed integer; it takes no memory of the machine.

use std::collections::BTreeMap;

use njoule_hlo::{ArrayShape, DType, Data, Tensor};

/// What device memory holds before it is written.
pub(crate) const POISON: u8 = 0xFF;

/// An allocation's content.
#[derive(Debug)]
pub(crate) struct Memory {
    size: usize,
    /// By offset; one begins where the one before it ends.
    segments: BTreeMap<usize, Segment>,
}

#[derive(Debug)]
struct Segment {
    len: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// One byte, everywhere.
    Fill(u8),
    Bytes(Vec<u8>),
    Typed(Tensor),
    /// In the hands of a run, which brings it back.
    Away,
}

/// A run has the part that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Away;

impl Memory {
    pub(crate) fn new(size: usize) -> Memory {
        Memory { size, segments: BTreeMap::from([(0, Segment { len: size, content: Content::Fill(POISON) })]) }
    }

    /// Copies out; the range is inside, which the caller has checked.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Away> {
        let end = offset + to.len();
        if self.overlapping(offset, end).any(|(_, s)| matches!(s.content, Content::Away)) {
            return Err(Away);
        }
        for (start, segment) in self.overlapping(offset, end) {
            let (from, until) = (offset.max(start), end.min(start + segment.len));
            let to = &mut to[from - offset..until - offset];
            let inside = from - start..until - start;
            match &segment.content {
                Content::Fill(byte) => to.fill(*byte),
                Content::Bytes(bytes) => to.copy_from_slice(&bytes[inside]),
                Content::Typed(tensor) => match bytes_of(tensor) {
                    Some(bytes) => to.copy_from_slice(&bytes[inside]),
                    None => to.copy_from_slice(&tensor.to_bytes()[inside]),
                },
                Content::Away => {} // looked for above
            }
        }
        Ok(())
    }

    /// Copies in; the range is inside.
    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) -> Result<(), Away> {
        if from.is_empty() {
            return Ok(());
        }
        // Inside one segment that holds bytes or elements: in place.
        if let Some((&start, segment)) = self.segments.range_mut(..=offset).next_back() {
            let inside = offset - start..offset - start + from.len();
            if inside.end <= segment.len {
                match &mut segment.content {
                    Content::Bytes(bytes) => {
                        bytes[inside].copy_from_slice(from);
                        return Ok(());
                    }
                    Content::Typed(tensor) => {
                        if let Some(bytes) = bytes_of_mut(tensor) {
                            bytes[inside].copy_from_slice(from);
                            return Ok(());
                        }
                    }
                    Content::Fill(_) | Content::Away => {}
                }
            }
        }
        self.replace(offset, from.len(), Content::Bytes(from.to_vec()))
    }

    /// Sets a range to one byte; the range is inside.
    pub(crate) fn fill(&mut self, offset: usize, len: usize, value: u8) -> Result<(), Away> {
        if len == 0 { Ok(()) } else { self.replace(offset, len, Content::Fill(value)) }
    }

    /// The range as a tensor of this shape, which stays here too: nothing is copied from the second time on.
    pub(crate) fn share(&mut self, offset: usize, shape: ArrayShape) -> Result<Tensor, Away> {
        if shape.bytes() == 0 {
            return Ok(of_bytes(shape, &[]));
        }
        let content = self.typed(offset, shape)?;
        match content {
            Content::Typed(tensor) => Ok(tensor.clone()),
            _ => Err(Away),
        }
    }

    /// The same, but it is away until [`Memory::put`] brings it, or another, back.
    pub(crate) fn take(&mut self, offset: usize, shape: ArrayShape) -> Result<Tensor, Away> {
        if shape.bytes() == 0 {
            return Ok(of_bytes(shape, &[]));
        }
        match std::mem::replace(self.typed(offset, shape)?, Content::Away) {
            Content::Typed(tensor) => Ok(tensor),
            _ => Err(Away),
        }
    }

    /// Puts a run's result at the range, whatever was there.
    pub(crate) fn put(&mut self, offset: usize, tensor: Tensor) {
        let len = tensor.shape().bytes();
        self.settle(offset, len, Content::Typed(tensor));
    }

    /// Puts poison there: what a run took and lost.
    pub(crate) fn lose(&mut self, offset: usize, len: usize) {
        self.settle(offset, len, Content::Fill(POISON));
    }

    fn settle(&mut self, offset: usize, len: usize, content: Content) {
        if len == 0 {
            return;
        }
        if let Some(segment) = self.segments.get_mut(&offset).filter(|s| s.len == len) {
            segment.content = content;
        } else if self.replace(offset, len, content).is_err() {
            // A run holds a part of it that overlaps: refused before it began.
            crate::misuse::record("two runs wrote overlapping parts of one allocation");
        }
    }

    /// The segments that share bytes with `offset..end`.
    fn overlapping(&self, offset: usize, end: usize) -> impl Iterator<Item = (usize, &Segment)> {
        let first = self.segments.range(..=offset).next_back().map_or(0, |(&start, _)| start);
        let within = self.segments.range(first..end.max(first)).map(|(&start, s)| (start, s));
        within.filter(move |(start, s)| start + s.len > offset && *start < end)
    }

    /// The segment of exactly this range, as a tensor of this shape.
    fn typed(&mut self, offset: usize, shape: ArrayShape) -> Result<&mut Content, Away> {
        let len = shape.bytes();
        if self.segments.get(&offset).is_none_or(|s| s.len != len) {
            let mut bytes = vec![0; len];
            self.read(offset, &mut bytes)?;
            self.replace(offset, len, Content::Bytes(bytes))?;
        }
        let Some(segment) = self.segments.get_mut(&offset) else { return Err(Away) };
        let content = std::mem::replace(&mut segment.content, Content::Away);
        segment.content = match content {
            Content::Away => return Err(Away),
            Content::Typed(tensor) if tensor.shape() == shape => Content::Typed(tensor),
            Content::Typed(tensor) if tensor.shape().dtype() == shape.dtype() => {
                // As many bytes of one type are as many elements.
                Content::Typed(tensor.reshape(shape).unwrap_or_else(|e| unreachable!("{e}")))
            }
            Content::Typed(tensor) => Content::Typed(of_bytes(shape, &tensor.to_bytes())),
            Content::Bytes(bytes) => Content::Typed(of_bytes(shape, &bytes)),
            Content::Fill(0) => Content::Typed(Tensor::zeros(shape).unwrap_or_else(|_| of_bytes(shape, &vec![0; len]))),
            Content::Fill(byte) => Content::Typed(of_bytes(shape, &vec![byte; len])),
        };
        Ok(&mut segment.content)
    }

    /// Makes the range one segment of this content. What lies across its ends is cut.
    fn replace(&mut self, offset: usize, len: usize, content: Content) -> Result<(), Away> {
        if self.overlapping(offset, offset + len).any(|(_, s)| matches!(s.content, Content::Away)) {
            return Err(Away);
        }
        self.cut(offset);
        self.cut(offset + len);
        let inside: Vec<usize> = self.segments.range(offset..offset + len).map(|(&start, _)| start).collect();
        for start in inside {
            self.segments.remove(&start);
        }
        self.segments.insert(offset, Segment { len, content });
        Ok(())
    }

    /// Has a segment begin at `at`. The one that lies across it is not away.
    fn cut(&mut self, at: usize) {
        if at >= self.size || self.segments.contains_key(&at) {
            return;
        }
        let Some((&start, segment)) = self.segments.range_mut(..at).next_back() else { return };
        let head = at - start;
        let tail_len = segment.len - head;
        segment.len = head;
        let tail = match &mut segment.content {
            Content::Fill(byte) => Content::Fill(*byte),
            Content::Bytes(bytes) => Content::Bytes(bytes.split_off(head)),
            Content::Typed(tensor) => {
                let mut bytes = tensor.to_bytes();
                let tail = bytes.split_off(head);
                segment.content = Content::Bytes(bytes);
                Content::Bytes(tail)
            }
            Content::Away => Content::Away,
        };
        self.segments.insert(at, Segment { len: tail_len, content: tail });
    }
}

/// `bytes` are as many as the shape has.
fn of_bytes(shape: ArrayShape, bytes: &[u8]) -> Tensor {
    Tensor::from_bytes(shape, bytes).unwrap_or_else(|e| unreachable!("{e}"))
}

/// The elements as they lie in memory, where every pattern of bits is one: not for `pred` and the 8-bit floats.
fn bytes_of(tensor: &Tensor) -> Option<&[u8]> {
    Some(match tensor.data() {
        Data::S8(v) => bytemuck::cast_slice(v),
        Data::U8(v) => v,
        Data::S32(v) => bytemuck::cast_slice(v),
        Data::U32(v) => bytemuck::cast_slice(v),
        Data::S64(v) => bytemuck::cast_slice(v),
        Data::F16(v) => bytemuck::cast_slice(v),
        Data::BF16(v) => bytemuck::cast_slice(v),
        Data::F32(v) => bytemuck::cast_slice(v),
        Data::Pred(_) | Data::F8E4M3(_) | Data::F8E4M3FN(_) | Data::F8E5M2(_) => return None,
    })
}

fn bytes_of_mut(tensor: &mut Tensor) -> Option<&mut [u8]> {
    match tensor.shape().dtype() {
        DType::S8 => tensor.as_mut_slice::<i8>().map(bytemuck::cast_slice_mut),
        DType::U8 => tensor.as_mut_slice::<u8>(),
        DType::S32 => tensor.as_mut_slice::<i32>().map(bytemuck::cast_slice_mut),
        DType::U32 => tensor.as_mut_slice::<u32>().map(bytemuck::cast_slice_mut),
        DType::S64 => tensor.as_mut_slice::<i64>().map(bytemuck::cast_slice_mut),
        DType::F16 => tensor.as_mut_slice::<half::f16>().map(bytemuck::cast_slice_mut),
        DType::BF16 => tensor.as_mut_slice::<half::bf16>().map(bytemuck::cast_slice_mut),
        DType::F32 => tensor.as_mut_slice::<f32>().map(bytemuck::cast_slice_mut),
        DType::Pred | DType::F8E4M3 | DType::F8E4M3FN | DType::F8E5M2 => None,
    }
}

#[cfg(test)]
mod tests;
