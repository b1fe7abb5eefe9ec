#include "image.h"

#include <elf.h>

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace rig {
namespace {

// A PTX text, read word by word: what is neither space nor part of a longer word is a word of its own.
class Words {
  public:
    explicit Words(const char *text) : at_(text) {}

    std::string next() {
        skip();
        if (*at_ == 0) return "";
        const char *start = at_;
        if (!is_letter(*at_)) return std::string(1, *at_++);
        while (is_letter(*at_)) at_++;
        return std::string(start, at_);
    }

  private:
    static bool is_letter(char c) { return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("._$%@", c) != nullptr; }

    void skip() {
        for (;;) {
            if (std::isspace(static_cast<unsigned char>(*at_)))
                at_++;
            else if (std::strncmp(at_, "//", 2) == 0)
                at_ += std::strcspn(at_, "\n");
            else if (const char *end; std::strncmp(at_, "/*", 2) == 0 && (end = std::strstr(at_, "*/")))
                at_ = end + 2;
            else
                return;
            if (*at_ == 0) return;
        }
    }

    const char *at_;
};

// ".u64" has 8 bytes.
unsigned bytes_of_type(const std::string &word) {
    static const char *const sizes[] = {"8", "16", "32", "64"};
    if (word.size() < 3 || word[0] != '.' || std::strchr("busf", word[1]) == nullptr) return 0;
    for (unsigned i = 0; i < 4; i++)
        if (word.substr(2) == sizes[i]) return 1u << i;
    return 0;
}

unsigned number(const std::string &word) {
    return static_cast<unsigned>(std::strtoul(word.c_str(), nullptr, 10));
}

// "type name", "type name[n]" up to one of the words that end it, which is left in `word`.
unsigned bytes_of_declaration(Words &words, std::string &word, const char *ends) {
    unsigned element = 0, count = 1;
    for (word = words.next(); !word.empty() && std::strchr(ends, word[0]) == nullptr; word = words.next()) {
        if (word == ".align")
            words.next();
        else if (word == "[")
            count = number(words.next());
        else if (unsigned bytes = bytes_of_type(word))
            element = bytes;
    }
    return element * count;
}

Image read_ptx(const char *text) {
    Image image;
    image.is_ptx = true;
    Words words(text);
    for (std::string word = words.next(); !word.empty(); word = words.next()) {
        if (word == ".target") {
            std::string target = words.next();
            if (target.rfind("sm_", 0) == 0) image.architecture = std::atoi(target.c_str() + 3);
        } else if (word == ".entry") {
            ImageKernel &kernel = image.kernels[words.next()];
            word = words.next();
            if (word == "(")
                while (word != ")" && !word.empty()) {
                    unsigned bytes = bytes_of_declaration(words, word, ",)");
                    if (bytes > 0) kernel.parameters.push_back(bytes);
                }
            for (word = words.next(); word != "{" && !word.empty(); word = words.next())
                if (word == ".maxntid" || word == ".reqntid") {
                    kernel.most_threads = number(words.next());
                    // Up to three numbers with commas; what follows them is looked at next.
                }
            for (int depth = 1; depth > 0 && !word.empty();) {
                word = words.next();
                if (word == "{") depth++;
                if (word == "}") depth--;
                if (word == ".shared") kernel.static_shared += bytes_of_declaration(words, word, ";");
            }
        }
    }
    return image;
}

// Attributes of a kernel in .nv.info.NAME: format, number, size, value.
constexpr unsigned EIFMT_SVAL = 4, EIATTR_MAX_THREADS = 0x05, EIATTR_KPARAM_INFO = 0x17;
constexpr unsigned EM_NVIDIA = 190;

std::uint32_t word_at(const unsigned char *at) {
    std::uint32_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

std::uint16_t half_at(const unsigned char *at) {
    std::uint16_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

void read_attributes(const unsigned char *at, std::size_t bytes, ImageKernel &kernel) {
    const unsigned char *end = at + bytes;
    while (at + 4 <= end) {
        unsigned format = at[0], number = at[1], size = half_at(at + 2);
        at += 4;
        if (format != EIFMT_SVAL) continue; // its value is the size
        if (number == EIATTR_KPARAM_INFO) {
            unsigned ordinal = half_at(at + 4);
            if (kernel.parameters.size() <= ordinal) kernel.parameters.resize(ordinal + 1);
            kernel.parameters[ordinal] = word_at(at + 8) >> 18 & 0x3fff;
        } else if (number == EIATTR_MAX_THREADS) {
            kernel.most_threads = word_at(at);
        }
        at += size;
    }
}

Image read_cubin(const unsigned char *bytes) {
    Image image;
    auto *header = reinterpret_cast<const Elf64_Ehdr *>(bytes);
    if (header->e_machine != EM_NVIDIA || header->e_ident[EI_CLASS] != ELFCLASS64) return image;
    // Older images have the architecture in the lowest byte of the flags, newer ones in the next.
    image.architecture = static_cast<int>(header->e_ident[EI_ABIVERSION] >= 8 ? header->e_flags >> 8 & 0xff : header->e_flags & 0xff);
    auto *sections = reinterpret_cast<const Elf64_Shdr *>(bytes + header->e_shoff);
    const char *names = reinterpret_cast<const char *>(bytes + sections[header->e_shstrndx].sh_offset);
    auto starts_with = [](const std::string &name, const std::string &start) { return name.rfind(start, 0) == 0; };
    for (unsigned i = 0; i < header->e_shnum; i++) {
        std::string name = names + sections[i].sh_name;
        if (starts_with(name, ".text.")) {
            ImageKernel &kernel = image.kernels[name.substr(6)];
            kernel.registers = sections[i].sh_info >> 24;
        } else if (starts_with(name, ".nv.info.")) {
            read_attributes(bytes + sections[i].sh_offset, sections[i].sh_size, image.kernels[name.substr(9)]);
        } else if (starts_with(name, ".nv.shared.") && name != ".nv.shared.reserved.0") {
            image.kernels[name.substr(11)].static_shared = static_cast<unsigned>(sections[i].sh_size);
        }
    }
    return image;
}

} // namespace

Image read_image(const void *image) {
    auto *bytes = static_cast<const unsigned char *>(image);
    if (std::memcmp(bytes, ELFMAG, 4) == 0) return read_cubin(bytes);
    return read_ptx(static_cast<const char *>(image));
}

} // namespace rig
