//! The one error type: one `Box` wide, so `Result<Tensor>` stays at 16 bytes.
//!
//! Every message names the operation, what was expected and what came. Constructors are
//! `#[track_caller]`, so [`Error::location`] is the line that asked for the impossible thing.

use std::fmt;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Shorthand used by every crate of the workspace.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by class. The text itself is in [`Error`]'s `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Shapes do not fit the operation.
    Shape,
    /// A dtype is not accepted here.
    DType,
    /// A device is absent or two devices were mixed.
    Device,
    /// An index or range lies outside its dimension.
    Index,
    /// An argument has an impossible value.
    Argument,
    /// Differentiation was asked for where it is not defined or not possible.
    Autodiff,
    /// The system has not enough memory.
    Memory,
    /// A NaN or an infinity where a finite number was required.
    NonFinite,
    /// The operating system refused a file operation.
    Io,
    /// A file's content is not what its format promises.
    Format,
    /// A configuration is wrong (the binary exits with status 2).
    Config,
    /// Anything else.
    Other,
}

/// The error of every fallible function in entrenar.
///
/// ```
/// use entrenar_base::{Error, ErrorKind};
/// let e = Error::shape("matmul", "inner dimensions to agree", "[2, 3] and [4, 5]");
/// assert_eq!(e.kind(), ErrorKind::Shape);
/// assert_eq!(e.to_string(), "[matmul] expected inner dimensions to agree, got [2, 3] and [4, 5]");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    location: &'static Location<'static>,
    path: Option<PathBuf>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` with a complete message.
    #[track_caller]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            location: Location::caller(),
            path: None,
            source: None,
        }))
    }

    #[track_caller]
    fn expected(
        kind: ErrorKind,
        op: &str,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Self {
        Self::new(kind, format!("[{op}] expected {expected}, got {got}"))
    }

    /// Shapes do not fit: `[op] expected …, got …`.
    #[track_caller]
    pub fn shape(op: &str, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self::expected(ErrorKind::Shape, op, expected, got)
    }

    /// A dtype does not fit: `[op] expected …, got …`.
    #[track_caller]
    pub fn dtype(op: &str, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self::expected(ErrorKind::DType, op, expected, got)
    }

    /// An index lies outside: `[op] expected …, got …`.
    #[track_caller]
    pub fn index(op: &str, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self::expected(ErrorKind::Index, op, expected, got)
    }

    /// An argument is impossible: `[op] expected …, got …`.
    #[track_caller]
    pub fn argument(op: &str, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self::expected(ErrorKind::Argument, op, expected, got)
    }

    /// A device is missing or mixed: `[op] expected …, got …`.
    #[track_caller]
    pub fn device(op: &str, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self::expected(ErrorKind::Device, op, expected, got)
    }

    /// Differentiation is impossible here: `[op] message`.
    #[track_caller]
    pub fn autodiff(op: &str, message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Autodiff, format!("[{op}] {message}"))
    }

    /// There is no memory for this many bytes: `[op] expected …, got …`.
    #[track_caller]
    pub fn memory(op: &str, bytes: usize) -> Self {
        let wanted = format!("{bytes} bytes of memory");
        Self::expected(ErrorKind::Memory, op, wanted, "none from the system")
    }

    /// A non-finite value was met: `[op] message`.
    #[track_caller]
    pub fn non_finite(op: &str, message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NonFinite, format!("[{op}] {message}"))
    }

    /// A file operation failed: `path: what: reason`.
    #[track_caller]
    pub fn io(path: impl AsRef<Path>, what: impl fmt::Display, source: std::io::Error) -> Self {
        let path = path.as_ref();
        let mut e = Self::new(
            ErrorKind::Io,
            format!("{}: {what}: {source}", path.display()),
        );
        e.0.path = Some(path.to_path_buf());
        e.0.source = Some(Box::new(source));
        e
    }

    /// A file does not hold what its format promises: `path: message`.
    #[track_caller]
    pub fn format(path: impl AsRef<Path>, message: impl fmt::Display) -> Self {
        let path = path.as_ref();
        let mut e = Self::new(ErrorKind::Format, format!("{}: {message}", path.display()));
        e.0.path = Some(path.to_path_buf());
        e
    }

    /// A wrong configuration or usage.
    #[track_caller]
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Anything that fits no other class.
    #[track_caller]
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Other, message)
    }

    /// Puts `context: ` before the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The source line that raised it (the caller's line for tensor methods).
    pub fn location(&self) -> &'static Location<'static> {
        self.0.location
    }

    /// Replaces the location; used by wrappers that know the user's line.
    #[must_use]
    pub fn at(mut self, location: &'static Location<'static>) -> Self {
        self.0.location = location;
        self
    }

    /// The file concerned, for [`ErrorKind::Io`] and [`ErrorKind::Format`].
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:?} error at {})",
            self.0.message, self.0.kind, self.0.location
        )
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_box_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<Box<u8>>>(), 2 * size_of::<usize>());
    }

    #[test]
    fn io_errors_keep_path_and_source() {
        let e = Error::io("a/b", "open", std::io::Error::other("boom")).context("loading");
        assert_eq!(e.to_string(), "loading: a/b: open: boom");
        assert_eq!(e.path(), Some(Path::new("a/b")));
        assert!(std::error::Error::source(&e).is_some());
        assert_eq!(e.location().file(), file!());
    }
}
