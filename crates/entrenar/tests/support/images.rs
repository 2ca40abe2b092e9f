//! Images for a run to learn from.

use std::path::Path;

/// IDX files of 8×8 images in three classes that differ by where they are bright.
pub fn write_images(folder: &Path, train: usize, test: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for (prefix, count) in [("train", train), ("t10k", test)] {
        let mut images = vec![0, 0, 8, 3];
        for size in [count, 8, 8] {
            images.extend((size as u32).to_be_bytes());
        }
        let mut labels = vec![0, 0, 8, 1];
        labels.extend((count as u32).to_be_bytes());
        for image in 0..count {
            let class = (image * 7 + image / 3) % 3;
            for row in 0..8 {
                for column in 0..8 {
                    let noise = (image * 31 + row * 17 + column * 13) * (image + 5) % 90;
                    let bright = (row + column) / 5 == class;
                    images.push((noise + if bright { 140 } else { 0 }) as u8);
                }
            }
            labels.push(class as u8);
        }
        std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).unwrap();
    }
}
