/* Count the images of MNIST's test set that an exported model gets wrong. Build it, and run it:

T=$(python -c 'import torch; print(torch.__path__[0])')
g++ -std=c++20 evaluate.cpp -o evaluate -I"$T/include" -L"$T/lib" -Wl,-rpath,"$T/lib" \
    -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10
./evaluate model.pt t10k-images-idx3-ubyte t10k-labels-idx1-ubyte
*/
#include <torch/script.h>

#include <filesystem>
#include <iostream>
#include <string>

// The bytes that follow the header of an IDX file.
torch::Tensor read_idx(const std::string& path, int64_t header_size) {
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  return torch::from_file(path, /*shared=*/false, size, torch::kUInt8).slice(0, header_size);
}

int main(int argc, char* argv[]) {
  if (argc != 4) {
    std::cerr << "usage: evaluate MODEL.pt IMAGES LABELS\n";
    return 2;
  }
  const c10::InferenceMode no_gradients;
  auto model = torch::jit::load(argv[1]);
  const auto images = read_idx(argv[2], 16).view({-1, 1, 28, 28}).split(100);  // uint8
  const auto labels = read_idx(argv[3], 8).split(100);
  TORCH_CHECK(images.size() == labels.size(), "These are not the labels of these images.");
  int64_t wrong = 0;
  for (size_t i = 0; i < images.size(); i++) {
    const auto logits = model.forward({images[i]}).toTensor();  // (N, 10)
    wrong += logits.argmax(1).ne(labels[i]).sum().item<int64_t>();
  }
  std::cout << wrong << " wrong\n";
}
