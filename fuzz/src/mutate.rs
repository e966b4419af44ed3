//! Mutators that know a format: what they make is mostly of that format still.

use crate::record::Model;

/// xorshift64*
pub struct Random(u64);

impl Random {
    /// From libFuzzer's seed.
    pub fn new(seed: u32) -> Self {
        Self(u64::from(seed) << 1 | 1)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }
}

/// Changes a fault record section by section: takes one out, repeats one, moves one, gives one another kind, puts in a new
/// one, cuts one, or has its length say something else. Returns the new length; 0 if there is no record.
pub fn record(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random::new(seed);
    let new = {
        let Some(mut model) = Model::read(&data[..size]) else { return 0 };
        let word = [random.below(256) as u8; 128];
        let n = model.sections.len();
        let i = random.below(n.max(1));
        match random.below(7) {
            0 if n > 0 => drop(model.sections.remove(i)),
            1 if n > 0 => model.sections.insert(random.below(n), model.sections[i]),
            2 if n > 0 => model.sections.swap(i, random.below(n)),
            3 if n > 0 => model.sections[i].0 = kind(&mut random),
            4 if n > 0 => {
                let body = model.sections[i].1;
                model.sections[i].1 = &body[..random.below(body.len() + 1)];
            }
            5 => model.sections.insert(i.min(n), (kind(&mut random), &word[..random.below(word.len())])),
            _ => {
                // Where the length is: behind the line, the head and the sections before.
                let before = model.sections.iter().take(i).map(|(_, body)| 8 + body.len()).sum::<usize>();
                let at = model.text.len() + 1 + 16 + before + 4;
                let mut bytes = model.write();
                let len = model.sections.get(i).map_or(0, |(_, body)| body.len() as u32);
                let lie = [len.wrapping_sub(1), len + 1, 0, u32::MAX, len << 8, len + 8][random.below(6)];
                if let Some(field) = bytes.get_mut(at..at + 4) {
                    field.copy_from_slice(&lie.to_le_bytes());
                }
                return put(data, &bytes, max_size);
            }
        }
        model.write()
    };
    put(data, &new, max_size)
}

/// One of the kinds that there are, or one that there is not.
fn kind(random: &mut Random) -> u32 {
    let kinds = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 255, 13, 0, u32::MAX];
    kinds[random.below(kinds.len())]
}

fn put(data: &mut [u8], new: &[u8], max_size: usize) -> usize {
    let len = new.len().min(max_size).min(data.len());
    data[..len].copy_from_slice(&new[..len]);
    len
}
