//! NVRTC, NVIDIA's compiler as a library: compiles a kernel's source to PTX where no compiled kernels were built in.
//!
//! The library is searched by name, where CUDA is usually installed, and among Python's packages; it needs no header,
//! no driver and no GPU.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
    sync::OnceLock,
};

use libloading::{Library, Symbol};

/// The functions in use, with the types of the library's documentation. All return 0 if they succeed.
struct Nvrtc {
    version: Version,
    archs_count: ArchsCount,
    archs: Archs,
    create: Create,
    compile: Compile,
    log_bytes: Size,
    log: Text,
    ptx_bytes: Size,
    ptx: Text,
    destroy: Destroy,
    /// Keeps the library loaded.
    _library: Library,
}

type Program = *mut c_void;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type ArchsCount = unsafe extern "C" fn(*mut c_int) -> c_int;
type Archs = unsafe extern "C" fn(*mut c_int) -> c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// The versions of the library that are searched.
const MAJOR: [u32; 3] = [13, 12, 11];

/// The paths where the library may be.
fn candidates() -> Vec<PathBuf> {
    let names: Vec<String> = match cfg!(windows) {
        true => ["130_0", "120_0", "112_0"].map(|version| format!("nvrtc64_{version}.dll")).into(),
        false => MAJOR.map(|major| format!("libnvrtc.so.{major}")).into_iter().chain(["libnvrtc.so".into()]).collect(),
    };
    let mut folders = vec![PathBuf::new()]; // an empty folder: the system's own search path
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = std::env::var_os(variable).map(PathBuf::from) {
            folders.extend(["lib64", "lib", "bin", "targets/x86_64-linux/lib"].map(|folder| home.join(folder)));
        }
    }
    folders.push("/usr/local/cuda/lib64".into());
    folders.into_iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)).collect::<Vec<_>>()).collect()
}

fn load(path: &Path) -> Result<Nvrtc, libloading::Error> {
    // SAFETY: the names are those of NVIDIA's library, whose initialisers are what every user of it runs.
    let library = unsafe { Library::new(path) }?;
    macro_rules! function {
        ($name:literal, $type:ty) => {{
            // SAFETY: the type is that of the library's documentation.
            let symbol: Symbol<$type> = unsafe { library.get($name) }?;
            *symbol
        }};
    }
    Ok(Nvrtc {
        version: function!(b"nvrtcVersion", Version),
        archs_count: function!(b"nvrtcGetNumSupportedArchs", ArchsCount),
        archs: function!(b"nvrtcGetSupportedArchs", Archs),
        create: function!(b"nvrtcCreateProgram", Create),
        compile: function!(b"nvrtcCompileProgram", Compile),
        log_bytes: function!(b"nvrtcGetProgramLogSize", Size),
        log: function!(b"nvrtcGetProgramLog", Text),
        ptx_bytes: function!(b"nvrtcGetPTXSize", Size),
        ptx: function!(b"nvrtcGetPTX", Text),
        destroy: function!(b"nvrtcDestroyProgram", Destroy),
        _library: library,
    })
}

static LIBRARY: OnceLock<Option<Nvrtc>> = OnceLock::new();

fn library() -> Option<&'static Nvrtc> {
    LIBRARY.get_or_init(|| candidates().iter().find_map(|path| load(path).ok())).as_ref()
}

/// Loads the library from the given folder, unless it was searched before: for tests that bring their own.
///
/// # Safety
/// The library of this name in `folder`, if there is one, is NVIDIA's: it is loaded and its functions are called.
#[doc(hidden)]
pub unsafe fn look_in(folder: &Path) {
    LIBRARY.get_or_init(|| MAJOR.iter().find_map(|major| load(&folder.join(format!("libnvrtc.so.{major}"))).ok()));
}

/// The compiler's version, if it is installed on this machine.
pub fn version() -> Option<(u32, u32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two ints.
    let answer = unsafe { (library()?.version)(&mut major, &mut minor) };
    (answer == 0).then_some((major as u32, minor as u32))
}

/// The architectures that the compiler supports, 89 for sm_89, ascending.
pub fn architectures() -> Vec<u32> {
    let Some(nvrtc) = library() else { return Vec::new() };
    let mut count = 0;
    // SAFETY: it writes one int.
    if unsafe { (nvrtc.archs_count)(&mut count) } != 0 || count < 0 {
        return Vec::new();
    }
    let mut archs = vec![0; count as usize];
    // SAFETY: it writes as many ints as it said.
    if unsafe { (nvrtc.archs)(archs.as_mut_ptr()) } != 0 {
        return Vec::new();
    }
    archs.into_iter().map(|arch| arch as u32).collect()
}

/// The options of every compilation, which are part of the cache's key. Every fused multiply-add is explicit in the
/// sources, so that a sum is the same in every kernel: the compiler must not make any.
pub const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// Compiles a source that includes `headers` (names and texts) to PTX with its final NUL.
///
/// # Errors
/// The compiler's messages; or that it is not installed.
pub fn compile(name: &str, source: &str, headers: &[(&str, &str)], arch: u32) -> Result<Vec<u8>, String> {
    let nvrtc = library().ok_or("there is no NVRTC on this machine")?;
    let text = |text: &str| CString::new(text).map_err(|_| format!("{name}: a NUL in the source"));
    let (source, file) = (text(source)?, text(name)?);
    let names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
    let texts = headers.iter().map(|(_, header)| text(header)).collect::<Result<Vec<_>, _>>()?;
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let mut program = Compiled { nvrtc, program: ptr::null_mut() };
    let (texts, names) = (pointers(&texts), pointers(&names));
    // SAFETY: all texts end with a NUL and outlive the call, and both lists have as many entries as the count says.
    let made = unsafe {
        (nvrtc.create)(
            &mut program.program,
            source.as_ptr(),
            file.as_ptr(),
            headers.len() as c_int,
            texts.as_ptr(),
            names.as_ptr(),
        )
    };
    if made != 0 {
        return Err(format!("{name}: NVRTC error {made}"));
    }
    let mut options = OPTIONS.map(text).into_iter().collect::<Result<Vec<_>, _>>()?;
    options.push(text(&format!("--gpu-architecture=compute_{arch}"))?);
    // SAFETY: the options end with a NUL and outlive the call.
    let compiled = unsafe { (nvrtc.compile)(program.program, options.len() as c_int, pointers(&options).as_ptr()) };
    if compiled != 0 {
        let log = program.text(nvrtc.log_bytes, nvrtc.log).unwrap_or_default();
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
        return Err(format!("{name} for compute_{arch}: NVRTC error {compiled}\n{log}"));
    }
    program.text(nvrtc.ptx_bytes, nvrtc.ptx).ok_or_else(|| format!("{name} for compute_{arch}: no PTX"))
}

/// A program of the compiler, which is destroyed on drop.
struct Compiled {
    nvrtc: &'static Nvrtc,
    program: Program,
}

impl Compiled {
    fn text(&self, bytes: Size, text: Text) -> Option<Vec<u8>> {
        let mut count = 0;
        // SAFETY: the program is open, and it writes one size.
        if unsafe { bytes(self.program, &mut count) } != 0 {
            return None;
        }
        let mut to = vec![0; count.max(1)];
        // SAFETY: it writes as many bytes as it said, the final NUL among them.
        (unsafe { text(self.program, to.as_mut_ptr().cast()) } == 0).then_some(to)
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program is open, and not used any more.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}
