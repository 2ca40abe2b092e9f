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
    /// Positions that each row has seen, where rows differ.
    rows: Option<Vec<usize>>,
}

impl KvCache {
    /// An empty cache for a model of this many layers.
    pub fn new(layers: usize) -> KvCache {
        KvCache {
            layers: (0..layers).map(|_| LayerCache::default()).collect(),
            rows: None,
        }
    }

    /// Number of positions seen, of the longest row.
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
        for row in self.rows.iter_mut().flatten() {
            *row = (*row).min(length);
        }
    }

    /// Says how much of each row is text: what a row holds beyond is padding, which nobody sees and
    /// the next call overwrites. From then on each row goes on from its own length, so that a batch
    /// of texts of different lengths computes what each would alone.
    ///
    /// # Errors
    /// When a length is above [`KvCache::len`], or there is not one per row.
    pub fn set_lengths(&mut self, lengths: Vec<usize>) -> Result<()> {
        if let Some(long) = lengths.iter().find(|n| **n > self.len()) {
            let most = format!("lengths of at most {}", self.len());
            return Err(Error::argument("KvCache", most, long));
        }
        if let Some(batch) = self.batch().filter(|b| *b != lengths.len()) {
            let want = format!("the lengths of {batch} rows");
            return Err(Error::argument("KvCache", want, lengths.len()));
        }
        self.rows = Some(lengths);
        Ok(())
    }

    /// What [`KvCache::set_lengths`] said, and what was added since.
    pub fn lengths(&self) -> Option<&[usize]> {
        self.rows.as_deref()
    }

    /// Drops all rows but these, in this order.
    ///
    /// # Errors
    /// When a row is not there.
    pub fn keep_rows(&mut self, kept: &[usize]) -> Result<()> {
        let batch = self.batch().unwrap_or(0);
        if let Some(row) = kept.iter().find(|r| **r >= batch) {
            let want = format!("rows below {batch}");
            return Err(Error::argument("KvCache", want, row));
        }
        if let Some(rows) = &mut self.rows {
            *rows = kept.iter().map(|r| rows[*r]).collect();
        }
        let longest = self.rows.as_ref().and_then(|r| r.iter().copied().max());
        for layer in &mut self.layers {
            // The longest row may be gone.
            layer.length = longest.unwrap_or(layer.length);
            for rows in layer.rows.iter_mut().flatten() {
                rows.keep(kept, layer.length)?;
            }
        }
        Ok(())
    }

    /// Rows of the batch, once something was seen.
    fn batch(&self) -> Option<usize> {
        let rows = self.layers.first()?.rows.as_ref()?;
        Some(rows[0].buffer.dims()[0])
    }

    /// After a call of `time` positions: rows of their own length have grown.
    pub(crate) fn advance(&mut self, time: usize) {
        for row in self.rows.iter_mut().flatten() {
            *row += time;
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
    /// Appends keys and values `[batch, heads, time, size]`, to each row at its own start where
    /// `starts` has them; returns all, `[batch, heads, seen, size]`.
    pub(crate) fn append(
        &mut self,
        key: &Tensor,
        value: &Tensor,
        starts: Option<&[usize]>,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, time) = (key.dims()[0], key.dims()[2]);
        let uniform = vec![self.length; batch];
        let starts = starts.unwrap_or(&uniform);
        if starts.len() != batch {
            let want = format!("a batch of {} rows, as the cache", starts.len());
            return Err(Error::argument("KvCache", want, batch));
        }
        if self.rows.is_none() {
            let new = |t: &Tensor| Rows {
                buffer: Array::zeros([t.dims()[0], t.dims()[1], 0, t.dims()[3]], DType::F32),
                room: 0,
            };
            self.rows = Some([new(key), new(value)]);
        }
        let [keys, values] = self.rows.as_mut().expect("filled above");
        let seen = self.length;
        let out = (
            keys.write(key, starts, seen)?,
            values.write(value, starts, seen)?,
        );
        self.length = starts.iter().max().map_or(seen, |start| start + time);
        Ok(out)
    }
}

impl Rows {
    fn write(&mut self, new: &Tensor, starts: &[usize], seen: usize) -> Result<Tensor> {
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
        let end = starts.iter().max().map_or(seen, |start| start + time);
        if end > self.room {
            self.grow(end.next_power_of_two().max(64), seen)?;
        }
        let fresh = new.to_dtype(DType::F32)?.detach();
        let fresh = entrenar_cpu::copy::contiguous(fresh.array())?;
        let (from, room) = (fresh.as_slice::<f32>()?, self.room);
        let to = self.buffer.make_mut::<f32>()?;
        for (head, rows) in from.chunks_exact((time * size).max(1)).enumerate() {
            let at = (head * room + starts[head / heads.max(1)]) * size;
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

    /// Copies the first `seen` positions of these rows of the batch.
    fn keep(&mut self, kept: &[usize], seen: usize) -> Result<()> {
        let &[_, heads, _, size] = self.buffer.dims() else {
            return Err(Error::shape("KvCache", "rank 4", self.buffer.shape()));
        };
        let room = self.room;
        let mut fewer = Array::zeros([kept.len(), heads, room, size], DType::F32);
        let from = self.buffer.as_slice::<f32>()?;
        let to = fewer.make_mut::<f32>()?;
        for (new, old) in kept.iter().enumerate() {
            for head in 0..heads {
                let (a, b) = ((old * heads + head) * room, (new * heads + head) * room);
                to[b * size..(b + seen) * size].copy_from_slice(&from[a * size..(a + seen) * size]);
            }
        }
        self.buffer = fewer;
        Ok(())
    }
}
