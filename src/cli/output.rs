//! Where a document goes: standard output, a pipe or device, or a file that is replaced as a whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::{Builder, NamedTempFile};

/// Symbolic links followed from a name, as by Linux (`path_resolution(7)`).
const LINKS_MAX: usize = 40;
/// Names of standard output and of standard error. They are written through the descriptor: opened anew, a file would be written from
/// its start, and a socket cannot be opened.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
const STDERR: [&str; 3] = ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"];
/// Other descriptors have names here, and the file behind one is not replaced: another program may write to it.
const DESCRIPTORS: [&str; 2] = ["/dev/fd/", "/proc/self/fd/"];

/// Held while a file is incomplete or a temporary file exists.
static WRITING: Mutex<()> = Mutex::new(());

/// Waits until no file is being written, and keeps others from it.
fn lock_files() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process. Neither a temporary file nor half of a file is left behind.
pub(super) fn exit(status: i32) -> ! {
    let _files = lock_files();
    std::process::exit(status);
}

/// Ends the process with the status of one that SIGINT has ended.
#[cfg(feature = "load")]
pub(super) fn exit_interrupted() -> ! {
    exit(130)
}

/// Writes all of `bytes`, and waits where the descriptor is non-blocking and full. On an error `bytes` is what is not written.
pub(super) fn write_whole(to: impl AsFd, bytes: &mut &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to.as_fd(), bytes).map_err(io::Error::from) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => *bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // An error of the descriptor, or of an interrupted wait, is that of the next write.
                let _ = poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns whether a write would not wait now.
pub(super) fn is_writable(to: impl AsFd) -> bool {
    poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(1)
}

/// Writes a text for people to standard output. A reader that is gone, such as a pager, has read enough.
pub(super) fn print(mut text: &[u8]) -> Result<(), String> {
    match write_whole(io::stdout(), &mut text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| cannot_print(&error)),
    }
}

/// Writes a document to standard output, or returns why it is not delivered.
pub(super) fn print_document(mut text: &[u8]) -> Result<(), String> {
    write_whole(io::stdout(), &mut text).map_err(|error| cannot_print(&error))
}

fn cannot_print(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

/// Returns whether a name is that of standard output.
#[cfg(feature = "load")]
pub(super) fn is_stdout(path: &Path) -> bool {
    follow_links(path).is_ok_and(|path| is_one_of(&path, &STDOUT))
}

/// The destination of one document.
#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    Stderr,
    /// A pipe, a terminal, `/dev/null`: it cannot be replaced by a file.
    Device(PathBuf, File),
    File(PathBuf),
}

/// Returns a usage error of two options whose outputs, open now, are the same.
pub(super) fn conflict(outputs: &[(&str, Option<&Output>)]) -> Option<String> {
    let open: Vec<_> = outputs.iter().filter_map(|&(option, output)| Some((option, output?))).collect();
    open.iter().enumerate().find_map(|(at, (option, output))| {
        let (first, _) = open[..at].iter().find(|(_, earlier)| earlier.is_same(output))?;
        let name = match output {
            Output::File(target) => target.display().to_string(),
            _ => "standard output".to_owned(),
        };
        Some(format!("{first} and {option} cannot both write to {name}"))
    })
}

/// A document that could not be put in place, and what of it is in a temporary file.
struct Unwritten {
    error: io::Error,
    temporary: Option<NamedTempFile>,
}

impl Output {
    /// Opens a pipe or device, or tries whether a file can be written: its old content stays until there is a new one.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot create {}: {error}", path.display());
        let target = follow_links(path).map_err(failed)?;
        if is_one_of(&target, &STDOUT) {
            return Ok(Self::Stdout);
        }
        if is_one_of(&target, &STDERR) {
            return Ok(Self::Stderr);
        }
        let is_descriptor = DESCRIPTORS.iter().any(|directory| target.starts_with(directory));
        match fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => Err(failed(io::ErrorKind::IsADirectory.into())),
            Ok(metadata) if is_descriptor || !metadata.is_file() => {
                // Without O_NONBLOCK, the open of a FIFO waits for a reader.
                match OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(&target) {
                    Err(error) if metadata.file_type().is_fifo() && error.raw_os_error() == Some(libc::ENXIO) => {
                        Err(format!("cannot open {}: no process reads this FIFO", path.display()))
                    }
                    opened => opened.map(|file| Self::Device(path.to_owned(), file)).map_err(failed),
                }
            }
            Ok(_) => Self::open_file(&fs::canonicalize(&target).map_err(failed)?).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let Some(name) = target.file_name() else {
                    return Err(format!("cannot create {:?}: not the name of a file", path.display()));
                };
                let directory = fs::canonicalize(directory(&target)).map_err(failed)?;
                Self::open_file(&directory.join(name)).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Returns whether a document here would replace or follow another one there. A device takes several.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stdout, Self::Stdout) => true,
            (Self::File(one), Self::File(other)) => one == other,
            _ => false,
        }
    }

    fn open_file(target: &Path) -> io::Result<Self> {
        let files = lock_files();
        if let Err(error) = create_temporary(target) {
            // In a directory that takes no new file, an existing one can be written.
            OpenOptions::new().write(true).open(target).map_err(|_| error)?;
        }
        drop(files);
        Ok(Self::File(target.to_owned()))
    }

    /// Empties an existing file. A device or a pipe has nothing to empty.
    pub(super) fn clear(&self) -> Result<(), String> {
        match self {
            Self::File(target) if target.exists() => self.replace(""),
            _ => Ok(()),
        }
    }

    /// Writes the document. If that fails, keeps what is written of it in a temporary file, which the error names.
    pub(super) fn write(&self, text: &str) -> Result<(), String> {
        match self {
            Self::Stdout => print_document(text.as_bytes()),
            Self::Stderr => write_whole(io::stderr(), &mut text.as_bytes())
                .map_err(|error| format!("cannot write to standard error: {error}")),
            Self::Device(path, file) => write_whole(file, &mut text.as_bytes())
                .map_err(|error| format!("cannot write {}: {error}", path.display())),
            Self::File(target) => {
                let _files = lock_files();
                let Err(Unwritten { error, temporary }) = replace(target, text) else { return Ok(()) };
                let temporary = temporary.or_else(|| write_temporary(NamedTempFile::with_prefix("ecoloop-"), text));
                let kept = temporary.and_then(|file| file.keep().ok());
                let kept = kept.map(|(_, path)| format!("; what was written is kept in {}", path.display()));
                Err(format!("cannot write {}: {error}{}", target.display(), kept.unwrap_or_default()))
            }
        }
    }

    /// Replaces a file by a document that is not the last one. If that fails, nothing of it is kept.
    pub(super) fn replace(&self, text: &str) -> Result<(), String> {
        let Self::File(target) = self else { return self.write(text) };
        let _files = lock_files();
        replace(target, text).map_err(|unwritten| format!("cannot write {}: {}", target.display(), unwritten.error))
    }
}

/// Returns the name that `path` has after its symbolic links. A link to a descriptor, or to a file that does not exist, has one too.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let is_descriptor = is_one_of(&path, &STDOUT)
            || is_one_of(&path, &STDERR)
            || DESCRIPTORS.iter().any(|directory| path.starts_with(directory));
        if is_descriptor {
            return Ok(path);
        }
        match fs::read_link(&path) {
            Ok(link) => path = directory(&path).join(link),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn is_one_of(path: &Path, names: &[&str]) -> bool {
    names.iter().any(|name| path == Path::new(name))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a temporary file beside `target`, because a rename does not cross file systems, with the mode of a new file (umask(2)).
/// Its name is random: in a container the process ID is always 1.
fn create_temporary(target: &Path) -> io::Result<NamedTempFile> {
    let permissions = Permissions::from_mode(0o666);
    Builder::new().prefix(".ecoloop-").suffix(".tmp").permissions(permissions).tempfile_in(directory(target))
}

/// Puts a document in place by a rename, or writes the existing file where it cannot be replaced by another: it is a mount point, its
/// directory is read-only, it has other names, or its owner cannot be given to a new file.
fn replace(target: &Path, text: &str) -> Result<(), Unwritten> {
    let mut temporary = match create_temporary(target) {
        Ok(temporary) => temporary,
        Err(error) => {
            let exists = target.is_file();
            return write_in_place(target, text)
                .map_err(|in_place| Unwritten { error: if exists { in_place } else { error }, temporary: None });
        }
    };
    if let Err(error) = write_whole(temporary.as_file(), &mut text.as_bytes()) {
        return Err(Unwritten { error, temporary: Some(temporary) });
    }
    let mut refusal = None;
    if may_replace(target, temporary.as_file()) {
        match temporary.persist(target) {
            Ok(_) => return Ok(()),
            Err(error) => {
                temporary = error.file;
                refusal = Some(error.error);
            }
        }
    }
    match write_in_place(target, text) {
        Ok(()) => Ok(()),
        Err(error) => Err(Unwritten { error: refusal.unwrap_or(error), temporary: Some(temporary) }),
    }
}

/// Gives a new file the owner and the mode of the one that it replaces, and returns whether it may.
fn may_replace(target: &Path, new: &File) -> bool {
    match fs::metadata(target) {
        Ok(old) if old.is_file() && old.nlink() == 1 => {
            let is_owned = new.metadata().is_ok_and(|new| (new.uid(), new.gid()) == (old.uid(), old.gid()))
                || fchown(new, Some(old.uid()), Some(old.gid())).is_ok();
            // After the owner, whose change clears the set-user-ID bit (chown(2)).
            is_owned && new.set_permissions(old.permissions()).is_ok()
        }
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn write_in_place(target: &Path, text: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).truncate(true).open(target)?;
    write_whole(file, &mut text.as_bytes())
}

/// Returns the temporary file once the whole text is in it.
fn write_temporary(created: io::Result<NamedTempFile>, text: &str) -> Option<NamedTempFile> {
    let mut temporary = created.ok()?;
    temporary.write_all(text.as_bytes()).ok()?;
    Some(temporary)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    pub(in crate::cli) fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_keeps_its_old_content_until_the_new_is_complete() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("report.json");
        fs::write(&path, "old").unwrap();
        let output = Output::open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        output.write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(&directory), ["report.json"]);
    }

    /// A file that its owner may not write can be replaced, if its directory can be written.
    #[test]
    fn an_existing_file_is_emptied_by_another_in_its_place_and_no_file_is_created() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("report.json");
        let output = Output::open(&path).unwrap();
        output.clear().unwrap();
        assert!(names(&directory).is_empty());
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        let old = File::open(&path).unwrap();
        output.clear().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
        assert_eq!(io::read_to_string(old).unwrap(), "old");
    }

    #[test]
    fn a_new_file_has_the_mode_of_any_new_file() {
        let directory = TempDir::new().unwrap();
        let [ours, other] = ["ours", "other"].map(|name| directory.path().join(name));
        Output::open(&ours).unwrap().write("new").unwrap();
        File::create(&other).unwrap();
        let [ours, other] = [ours, other].map(|path| fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(ours, other, "{ours:o} {other:o}");
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_its_other_names() {
        let directory = TempDir::new().unwrap();
        let [file, other] = ["file", "other"].map(|name| directory.path().join(name));
        fs::write(&file, "old and longer").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o604)).unwrap();
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        Output::open(&file).unwrap().write("new").unwrap();
        assert_eq!((mode(), fs::read_to_string(&file).unwrap()), (0o604, "new".to_owned()));
        fs::hard_link(&file, &other).unwrap();
        Output::open(&file).unwrap().write("newer").unwrap();
        assert_eq!((mode(), fs::read_to_string(&other).unwrap()), (0o604, "newer".to_owned()));
        assert_eq!(names(&directory), ["file", "other"]);
    }

    #[test]
    fn a_link_to_a_missing_file_is_kept_and_the_file_created() {
        let directory = TempDir::new().unwrap();
        let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
        symlink("file", &link).unwrap();
        Output::open(&link).unwrap().write("new").unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("file"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        symlink("ring", directory.path().join("ring")).unwrap();
        let error = Output::open(&directory.path().join("ring")).unwrap_err();
        assert!(error.contains("Too many levels of symbolic links"), "{error}");
    }

    #[test]
    fn a_failed_run_leaves_nothing_behind() {
        let directory = TempDir::new().unwrap();
        drop(Output::open(&directory.path().join("report.json")).unwrap());
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn a_symbolic_link_is_kept_and_a_device_is_not_replaced() {
        let directory = TempDir::new().unwrap();
        let [file, link, device] = ["file", "link", "null"].map(|name| directory.path().join(name));
        fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        symlink("/dev/null", &device).unwrap();
        Output::open(&link).unwrap().write("new").unwrap();
        Output::open(&device).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::read_link(&link).unwrap(), file);
        assert_eq!(fs::read_link(&device).unwrap(), Path::new("/dev/null"));
    }

    #[test]
    fn an_output_that_cannot_be_created_is_refused_before_the_run() {
        let directory = TempDir::new().unwrap();
        let refusal = |path: &Path| Output::open(path).err().unwrap();
        let missing = directory.path().join("missing/report.json");
        let expected = format!("cannot create {}: No such file or directory (os error 2)", missing.display());
        assert_eq!(refusal(&missing), expected);
        assert_eq!(refusal(directory.path()), format!("cannot create {}: is a directory", directory.path().display()));
        assert_eq!(refusal(Path::new("")), "cannot create \"\": not the name of a file");
    }
}
