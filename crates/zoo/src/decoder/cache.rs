//! [`KvCache`]: keys and values of the positions already seen, so that a new token costs one
//! position's work.
//!
//! Each layer owns a buffer with room to spare; a step writes its rows in place, which is possible
//! because nobody else holds the storage between two steps. Not for training: gradients do not
//! flow through it.

use entrenar_core::{Array, DType, Error, Result, Tensor};

/// Keys or values of one layer, `[batch, heads, room, size]`.
#[derive(Debug)]
struct Rows {
    buffer: Array,
    room: usize,
}

/// Keys and values of one layer.
#[derive(Debug, Default)]
pub struct LayerCache {
    rows: Option<[Rows; 2]>,
    length: usize,
}

/// Keys and values of every layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache for a model of this many layers.
    pub fn new(layers: usize) -> KvCache {
        KvCache {
            layers: (0..layers).map(|_| LayerCache::default()).collect(),
        }
    }

    /// Number of positions seen.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |l| l.length)
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything but the first `length` positions.
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            layer.length = layer.length.min(length);
        }
    }

    pub(crate) fn layer(&mut self, i: usize) -> Result<&mut LayerCache> {
        let layers = self.layers.len();
        self.layers.get_mut(i).ok_or_else(|| {
            Error::argument(
                "KvCache",
                format!("a cache of more than {i} layers"),
                layers,
            )
        })
    }
}

impl LayerCache {
    /// Appends keys and values `[batch, heads, time, size]`; returns all of them,
    /// `[batch, heads, seen, size]`.
    pub(crate) fn append(&mut self, key: &Tensor, value: &Tensor) -> Result<(Tensor, Tensor)> {
        let start = self.length;
        let time = key.dims()[2];
        if self.rows.is_none() {
            let new = |t: &Tensor| Rows {
                buffer: Array::zeros([t.dims()[0], t.dims()[1], 0, t.dims()[3]], DType::F32),
                room: 0,
            };
            self.rows = Some([new(key), new(value)]);
        }
        let [keys, values] = self.rows.as_mut().expect("filled above");
        let out = (keys.write(key, start)?, values.write(value, start)?);
        self.length = start + time;
        Ok(out)
    }
}

impl Rows {
    fn write(&mut self, new: &Tensor, start: usize) -> Result<Tensor> {
        let &[batch, heads, time, size] = new.dims() else {
            return Err(Error::shape(
                "KvCache",
                "[batch, heads, time, size]",
                new.shape(),
            ));
        };
        let held = self.buffer.dims();
        if held[..2] != [batch, heads] || held[3] != size {
            return Err(Error::shape("KvCache", self.buffer.shape(), new.shape()));
        }
        let end = start + time;
        if end > self.room {
            self.grow(end.next_power_of_two().max(64), start)?;
        }
        let fresh = new.to_dtype(DType::F32)?.detach();
        let fresh = entrenar_cpu::copy::contiguous(fresh.array())?;
        let (from, room) = (fresh.as_slice::<f32>()?, self.room);
        let to = self.buffer.make_mut::<f32>()?;
        for (head, rows) in from.chunks_exact((time * size).max(1)).enumerate() {
            let at = (head * room + start) * size;
            to[at..at + rows.len()].copy_from_slice(rows);
        }
        Ok(Tensor::from(self.buffer.slice(2, 0, end, 1)?))
    }

    /// Moves the first `seen` positions to a buffer with room for `room`.
    fn grow(&mut self, room: usize, seen: usize) -> Result<()> {
        let &[batch, heads, _, size] = self.buffer.dims() else {
            return Err(Error::shape("KvCache", "rank 4", self.buffer.shape()));
        };
        let mut wider = Array::zeros([batch, heads, room, size], DType::F32);
        if seen > 0 {
            let (from, old) = (self.buffer.as_slice::<f32>()?, self.room);
            let to = wider.make_mut::<f32>()?;
            for head in 0..batch * heads {
                let (a, b) = (head * old * size, head * room * size);
                to[b..b + seen * size].copy_from_slice(&from[a..a + seen * size]);
            }
        }
        (self.buffer, self.room) = (wider, room);
        Ok(())
    }
}
