// SDSHARD_RIG_FAULTS=symbol:NAME: this library, as it is loaded, forgets that it has a function, like an older driver.
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "settings.h"

namespace {

// Names are found through a hash table, of which the last chain ends with the last symbol.
std::size_t symbol_count(const std::uint32_t *gnu_hash) {
    std::uint32_t buckets = gnu_hash[0], first = gnu_hash[1], bloom = gnu_hash[2], last = 0;
    auto *bucket = reinterpret_cast<const std::uint32_t *>(reinterpret_cast<const std::uint64_t *>(gnu_hash + 4) + bloom);
    const std::uint32_t *chain = bucket + buckets;
    for (std::uint32_t i = 0; i < buckets; i++) last = bucket[i] > last ? bucket[i] : last;
    if (last == 0) return first;
    while (!(chain[last - first] & 1)) last++;
    return last + 1;
}

void forget(const std::string &name) {
    ElfW(Sym) *symbols = nullptr;
    const char *names = nullptr;
    const std::uint32_t *hash = nullptr;
    for (const ElfW(Dyn) *entry = _DYNAMIC; entry->d_tag != DT_NULL; entry++) {
        // The loader has made addresses of these.
        if (entry->d_tag == DT_SYMTAB) symbols = reinterpret_cast<ElfW(Sym) *>(entry->d_un.d_ptr);
        if (entry->d_tag == DT_STRTAB) names = reinterpret_cast<const char *>(entry->d_un.d_ptr);
        if (entry->d_tag == DT_GNU_HASH) hash = reinterpret_cast<const std::uint32_t *>(entry->d_un.d_ptr);
    }
    for (std::size_t i = 0; i < symbol_count(hash); i++) {
        if (name != names + symbols[i].st_name) continue;
        auto page = std::size_t(sysconf(_SC_PAGESIZE));
        auto first = reinterpret_cast<std::size_t>(&symbols[i]) & ~(page - 1);
        auto bytes = reinterpret_cast<std::size_t>(&symbols[i] + 1) - first;
        if (mprotect(reinterpret_cast<void *>(first), bytes, PROT_READ | PROT_WRITE) != 0) std::abort();
        symbols[i].st_value = 0; // what dlsym takes for not defined here
        symbols[i].st_shndx = SHN_UNDEF;
        return;
    }
    rig::say("SDSHARD_RIG_FAULTS: there is no function \"" + name + "\" that could be missing");
    std::abort();
}

__attribute__((constructor)) void forget_symbols() {
    const char *faults = std::getenv("SDSHARD_RIG_FAULTS");
    std::string rest = faults ? faults : "";
    while (!rest.empty()) {
        std::size_t end = rest.find(',');
        std::string fault = rest.substr(0, end);
        if (fault.rfind("symbol:", 0) == 0) forget(fault.substr(std::strlen("symbol:")));
        rest = end == std::string::npos ? "" : rest.substr(end + 1);
    }
}

} // namespace
