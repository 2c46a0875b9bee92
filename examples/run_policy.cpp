// Run an exported policy with OpenVINO in C++: ./run_policy pipeline-openvino/policy.xml DECISIONS [INPUTS]
//
// It also reads policy.onnx. INPUTS is a file with the raw numbers of each decision: the observations, then the noise,
// in the order of the graph's inputs. Without it the observations are zeros and the noise is drawn. Prints one action
// of the first robot a line, and the median time of a decision.
//
// Headers and libraries come with pip install openvino:
//
//     OV=$(python -c "import openvino, pathlib; print(pathlib.Path(openvino.__file__).parent)")
//     g++ -std=c++17 -O2 run_policy.cpp -I$OV/include -L$OV/libs -Wl,-rpath,$OV/libs -l:$(basename $OV/libs/libopenvino.so.*)
//         -o run_policy

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

namespace {

bool is_state(const std::string& name) { return name == "start" || name == "features" || name == "actions"; }

void fill(ov::Tensor tensor, int byte) { std::memset(tensor.data(), byte, tensor.get_byte_size()); }

void draw(ov::Tensor tensor, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::generate_n(tensor.data<float>(), tensor.get_size(), [&] { return normal(random); });
}

}  // namespace

int main(int count, char** arguments) try {
    if (count < 3) throw std::runtime_error("usage: run_policy MODEL DECISIONS [INPUTS]");
    ov::Core core;
    auto model = core.compile_model(arguments[1], "CPU", ov::inference_num_threads(1),
                                    ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();
    std::ifstream file;
    if (count > 3) {
        file.open(arguments[3], std::ios::binary);
        if (!file) throw std::runtime_error(std::string("cannot read ") + arguments[3]);
    }
    std::mt19937 random(0);
    std::vector<std::string> names;
    for (const auto& input : model.inputs()) {
        names.push_back(input.get_any_name());
        fill(request.get_tensor(names.back()), names.back() == "start");  // the first decision of an episode
    }
    std::vector<double> times;
    for (int decision = 0; decision < std::atoi(arguments[2]); ++decision) {
        for (const auto& name : names) {
            if (is_state(name)) continue;
            auto tensor = request.get_tensor(name);
            if (count > 3) {
                file.read(static_cast<char*>(tensor.data()), tensor.get_byte_size());
                if (!file) throw std::runtime_error("the file of inputs is too short");
            } else if (name == "noise") {
                draw(tensor, random);
            }
        }
        const auto began = std::chrono::steady_clock::now();
        request.infer();
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
        times.push_back(took.count());
        for (const auto& name : names) {
            if (name == "start") fill(request.get_tensor(name), 0);
            if (name == "features" || name == "actions")
                request.get_tensor("next_" + name).copy_to(request.get_tensor(name));
        }
        const auto action = request.get_tensor("action");
        for (size_t i = 0; i < action.get_shape().back(); ++i) std::cout << action.data<float>()[i] << ' ';
        std::cout << '\n';
    }
    std::sort(times.begin(), times.end());
    if (!times.empty()) std::cerr << times[times.size() / 2] << " ms a decision\n";
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
}
