//! Tests only: a disk that knows what may be left after a power cut.
//!
//! Every call is done for real and noted. [`PowerDisk::after`] replays the first n calls into a
//! model in which each file and each directory has passed through a number of states since it was
//! last synced; after a power cut any one of them may be what the device holds, independently of
//! the others (a name can be there without its data, data without its name). A directory's states
//! come in order and a rename inside it is one step: what journaling file systems promise.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::disk::{Disk, OsDisk, Sink};

enum Call {
    CreateDir(PathBuf),
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// Notes every call over [`OsDisk`], relative to a root that exists from the start.
#[derive(Clone)]
pub(crate) struct PowerDisk {
    root: PathBuf,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl PowerDisk {
    pub(crate) fn new(root: &Path) -> PowerDisk {
        PowerDisk {
            root: root.to_path_buf(),
            calls: Arc::default(),
        }
    }

    /// Number of calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn note(&self, call: impl FnOnce(&dyn Fn(&Path) -> PathBuf) -> Call) {
        let relative = |path: &Path| path.strip_prefix(&self.root).unwrap().to_path_buf();
        self.calls.lock().unwrap().push(call(&relative));
    }

    /// What the device may hold after the first `n` calls.
    pub(crate) fn after(&self, n: usize) -> Model {
        let mut model = Model::default();
        for call in &self.calls.lock().unwrap()[..n] {
            model.apply(call);
        }
        model
    }
}

#[derive(Clone, Copy)]
enum Node {
    File(usize),
    Directory(usize),
}

/// The states since the last sync; the first is the synced one, the last the current one.
struct States<T>(Vec<T>);

impl<T: Clone + Default> Default for States<T> {
    fn default() -> Self {
        States(vec![T::default()])
    }
}

impl<T: Clone> States<T> {
    fn now(&self) -> &T {
        self.0.last().unwrap()
    }
    fn change(&mut self, how: impl FnOnce(&mut T)) {
        let mut next = self.now().clone();
        how(&mut next);
        self.0.push(next);
    }
    fn sync(&mut self) {
        self.0.drain(..self.0.len() - 1);
    }
}

/// Files and directories with their possible states.
pub(crate) struct Model {
    files: Vec<States<Vec<u8>>>,
    directories: Vec<States<BTreeMap<String, Node>>>,
}

impl Default for Model {
    fn default() -> Self {
        Model {
            files: Vec::new(),
            directories: vec![States::default()],
        }
    }
}

impl Model {
    fn directory(&self, path: &Path) -> usize {
        path.components().fold(0, |at, part| {
            let name = part.as_os_str().to_str().unwrap();
            match self.directories[at].now()[name] {
                Node::Directory(next) => next,
                Node::File(_) => panic!("{} is a file", path.display()),
            }
        })
    }

    fn entry(&self, path: &Path) -> (usize, String) {
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        (self.directory(path.parent().unwrap()), name)
    }

    fn file(&mut self, path: &Path) -> &mut States<Vec<u8>> {
        let (at, name) = self.entry(path);
        match self.directories[at].now()[&name] {
            Node::File(file) => &mut self.files[file],
            Node::Directory(_) => panic!("{} is a directory", path.display()),
        }
    }

    fn apply(&mut self, call: &Call) {
        match call {
            Call::CreateDir(path) => {
                let (at, name) = self.entry(path);
                self.directories.push(States::default());
                let node = Node::Directory(self.directories.len() - 1);
                self.directories[at].change(|d| {
                    d.insert(name, node);
                });
            }
            Call::Create(path) => {
                let (at, name) = self.entry(path);
                self.files.push(States::default());
                let node = Node::File(self.files.len() - 1);
                self.directories[at].change(|d| {
                    d.insert(name, node);
                });
            }
            Call::Write(path, bytes) => self.file(path).change(|f| f.extend_from_slice(bytes)),
            Call::Sync(path) => self.file(path).sync(),
            Call::SyncDir(path) => {
                let at = self.directory(path);
                self.directories[at].sync();
            }
            Call::Rename(from, to) => {
                let ((at, old), (there, new)) = (self.entry(from), self.entry(to));
                assert_eq!(at, there, "a rename between directories is not one step");
                self.directories[at].change(|d| {
                    let node = d.remove(&old).unwrap();
                    d.insert(new, node);
                });
            }
            Call::Remove(path) => {
                let (at, name) = self.entry(path);
                self.directories[at].change(|d| {
                    d.remove(&name);
                });
            }
        }
    }

    /// Writes into `root` what the device holds when `choose(n)` picks among n states, oldest
    /// first.
    pub(crate) fn restore(&self, root: &Path, choose: &mut dyn FnMut(usize) -> usize) {
        self.restore_directory(0, root, choose);
    }

    fn restore_directory(&self, at: usize, to: &Path, choose: &mut dyn FnMut(usize) -> usize) {
        let states = &self.directories[at].0;
        for (name, node) in &states[choose(states.len())] {
            let path = to.join(name);
            match *node {
                Node::File(file) => {
                    let states = &self.files[file].0;
                    fs::write(path, &states[choose(states.len())]).unwrap();
                }
                Node::Directory(next) => {
                    fs::create_dir(&path).unwrap();
                    self.restore_directory(next, &path, choose);
                }
            }
        }
    }
}

struct PowerSink {
    disk: PowerDisk,
    path: PathBuf,
    sink: Box<dyn Sink>,
}

impl Write for PowerSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // In two halves, so that a torn write is among the states.
        let half = bytes.len().div_ceil(2);
        self.sink.write_all(&bytes[..half])?;
        self.disk
            .note(|r| Call::Write(r(&self.path), bytes[..half].to_vec()));
        Ok(half)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl Sink for PowerSink {
    fn sync(&mut self) -> io::Result<()> {
        self.sink.sync()?;
        self.disk.note(|r| Call::Sync(r(&self.path)));
        Ok(())
    }
}

impl Disk for PowerDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir(path)?;
        self.note(|r| Call::CreateDir(r(path)));
        Ok(())
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        let sink = OsDisk.create(path)?;
        self.note(|r| Call::Create(r(path)));
        Ok(Box::new(PowerSink {
            disk: self.clone(),
            path: path.to_path_buf(),
            sink,
        }))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)?;
        self.note(|r| Call::Rename(r(from), r(to)));
        Ok(())
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.sync_dir(path)?;
        self.note(|r| Call::SyncDir(r(path)));
        Ok(())
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_file(path)?;
        self.note(|r| Call::Remove(r(path)));
        Ok(())
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        // Its files go one by one, so that half of it may be left.
        for entry in fs::read_dir(path)? {
            self.remove_file(&entry?.path())?;
        }
        fs::remove_dir(path)?;
        self.note(|r| Call::Remove(r(path)));
        Ok(())
    }
}
