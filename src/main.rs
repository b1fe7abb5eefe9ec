//! The command line program.

mod cli;

fn main() -> std::process::ExitCode {
    // Without a display, a Vulkan layer of Mesa prints a complaint to stderr that it finds none.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread is running yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    cli::main()
}
