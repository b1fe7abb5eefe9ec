//! int8 by the tiles of AMX: 32 rows times 32 columns in four accumulators. The instructions have no stable functions
//! yet, so they are written as assembler.

#![cfg(target_arch = "x86_64")]

use std::{
    arch::{asm, x86_64::__cpuid_count},
    sync::LazyLock,
};

use super::{
    dot::Dot,
    segments::{MAX_ROWS, STEP},
    vectors::x86::Vnni512,
};

/// Bytes of a row of words of a panel: 32 columns.
const PANEL_BYTES: usize = 32 * 4;
/// Rows of one of AMX's tiles.
const TILE_ROWS: usize = 16;

/// Whether the processor has AMX for int8 and the system lets this process use it.
pub fn is_here() -> bool {
    static HERE: LazyLock<bool> = LazyLock::new(|| has_instructions() && permitted());
    *HERE
}

fn has_instructions() -> bool {
    let (tile, int8) = (1 << 24, 1 << 25);
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & (tile | int8) == tile | int8
}

/// Asks Linux for the registers of tiles, for all threads of the process.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const SYS_ARCH_PRCTL: usize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: the call takes two numbers and changes no memory of this process.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") SYS_ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The sizes of the eight tiles: 16 rows of 64 bytes each.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// int8 by AMX.
pub struct Amx;

impl Dot for Amx {
    const ROWS: usize = 2 * TILE_ROWS;
    const IS_INT8: bool = true;
    type Words = Vnni512;

    fn gathered_words(words: usize) -> usize {
        Self::ROWS * words
    }

    #[inline(always)]
    unsafe fn start() {
        // SAFETY: the processor has AMX; the configuration is as the instruction reads it.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, preserves_flags, readonly)) }
    }

    #[inline(always)]
    unsafe fn stop() {
        // SAFETY: the processor has AMX.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }

    #[inline(always)]
    unsafe fn gather(rows: &mut [*const u32; MAX_ROWS], count: usize, words: usize, mut room: *mut u32) -> *mut u32 {
        for tile in rows.chunks_exact_mut(TILE_ROWS).take(count.div_ceil(TILE_ROWS)) {
            let step = (tile[1] as usize).wrapping_sub(tile[0] as usize);
            if tile.windows(2).all(|pair| (pair[1] as usize).wrapping_sub(pair[0] as usize) == step) {
                continue;
            }
            for row in tile {
                // SAFETY: the caller's contract.
                unsafe {
                    room.copy_from_nonoverlapping(*row, words);
                    *row = room;
                    room = room.add(words);
                }
            }
        }
        room
    }

    #[inline(always)]
    unsafe fn tile(
        rows: &[*const u32; MAX_ROWS],
        count: usize,
        words: usize,
        weights: *const u32,
        _is_first: bool,
        to: *mut f32,
    ) {
        let step = |first: usize| (rows[first + 1] as usize).wrapping_sub(rows[first] as usize);
        // SAFETY: the caller's contract; `gather` has put rows at equal distances, and words are whole rows of tiles.
        unsafe {
            if count > TILE_ROWS {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{a} + {a_step}*1]",
                    "tileloadd tmm6, [{b} + {b_step}*1]",
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {b_step}*1 + 64]",
                    "tdpbusd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{c} + {c_step}*1]",
                    "tdpbusd tmm2, tmm5, tmm6",
                    "tdpbusd tmm3, tmm5, tmm7",
                    "add {a}, 64",
                    "add {c}, 64",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{to} + {b_step}*1], tmm0",
                    "tilestored [{to} + {b_step}*1 + 64], tmm1",
                    "tilestored [{to} + {b_step}*1 + 2048], tmm2",
                    "tilestored [{to} + {b_step}*1 + 2112], tmm3",
                    a = inout(reg) rows[0] => _,
                    c = inout(reg) rows[TILE_ROWS] => _,
                    b = inout(reg) weights => _,
                    n = inout(reg) words / STEP => _,
                    a_step = in(reg) step(0),
                    c_step = in(reg) step(TILE_ROWS),
                    b_step = in(reg) PANEL_BYTES,
                    to = in(reg) to,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0", "tilezero tmm1",
                    "2:",
                    "tileloadd tmm4, [{a} + {a_step}*1]",
                    "tileloadd tmm6, [{b} + {b_step}*1]",
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {b_step}*1 + 64]",
                    "tdpbusd tmm1, tmm4, tmm7",
                    "add {a}, 64",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{to} + {b_step}*1], tmm0",
                    "tilestored [{to} + {b_step}*1 + 64], tmm1",
                    a = inout(reg) rows[0] => _,
                    b = inout(reg) weights => _,
                    n = inout(reg) words / STEP => _,
                    a_step = in(reg) step(0),
                    b_step = in(reg) PANEL_BYTES,
                    to = in(reg) to,
                    options(nostack),
                );
            }
        }
    }
}
