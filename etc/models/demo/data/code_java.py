"""The Java answers by task. Data only."""

JAVA = {
    "bubble": """static void bubbleSort(int[] arr) {
    int n = arr.length;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n - i - 1; j++) {
            if (arr[j] > arr[j + 1]) {
                int t = arr[j];
                arr[j] = arr[j + 1];
                arr[j + 1] = t;
            }
        }
    }
}""",
    "quick": """static void quickSort(int[] arr, int low, int high) {
    if (low >= high) return;
    int pivot = arr[(low + high) / 2];
    int i = low, j = high;
    while (i <= j) {
        while (arr[i] < pivot) i++;
        while (arr[j] > pivot) j--;
        if (i <= j) {
            int t = arr[i];
            arr[i++] = arr[j];
            arr[j--] = t;
        }
    }
    quickSort(arr, low, j);
    quickSort(arr, i, high);
}""",
    "merge": """static int[] mergeSort(int[] arr) {
    if (arr.length <= 1) return arr;
    int mid = arr.length / 2;
    int[] left = mergeSort(Arrays.copyOfRange(arr, 0, mid));
    int[] right = mergeSort(Arrays.copyOfRange(arr, mid, arr.length));
    int[] result = new int[arr.length];
    int i = 0, j = 0;
    for (int k = 0; k < result.length; k++) {
        boolean takeLeft = j == right.length || i < left.length && left[i] <= right[j];
        result[k] = takeLeft ? left[i++] : right[j++];
    }
    return result;
}""",
    "insertion": """static void insertionSort(int[] arr) {
    for (int i = 1; i < arr.length; i++) {
        int key = arr[i];
        int j = i - 1;
        while (j >= 0 && arr[j] > key) {
            arr[j + 1] = arr[j];
            j--;
        }
        arr[j + 1] = key;
    }
}""",
    "selection": """static void selectionSort(int[] arr) {
    for (int i = 0; i < arr.length; i++) {
        int smallest = i;
        for (int j = i + 1; j < arr.length; j++) {
            if (arr[j] < arr[smallest]) smallest = j;
        }
        int t = arr[i];
        arr[i] = arr[smallest];
        arr[smallest] = t;
    }
}""",
    "sort": """static int[] sortNumbers(int[] numbers) {
    int[] result = numbers.clone();
    Arrays.sort(result);
    return result;
}""",
    "binary": """static int binarySearch(int[] arr, int target) {
    int low = 0, high = arr.length - 1;
    while (low <= high) {
        int mid = (low + high) / 2;
        if (arr[mid] == target) return mid;
        if (arr[mid] < target) low = mid + 1;
        else high = mid - 1;
    }
    return -1;
}""",
    "linear": """static int linearSearch(int[] arr, int target) {
    for (int i = 0; i < arr.length; i++) {
        if (arr[i] == target) return i;
    }
    return -1;
}""",
    "factorial": """static long factorial(int n) {
    if (n <= 1) return 1;
    return n * factorial(n - 1);
}""",
    "factorial_loop": """static long factorial(int n) {
    long result = 1;
    for (int i = 2; i <= n; i++) result *= i;
    return result;
}""",
    "fibonacci": """static List<Integer> fibonacci(int n) {
    List<Integer> result = new ArrayList<>();
    int a = 0, b = 1;
    for (int i = 0; i < n; i++) {
        result.add(a);
        int next = a + b;
        a = b;
        b = next;
    }
    return result;
}""",
    "fibonacci_rec": """static int fib(int n) {
    if (n <= 1) return n;
    return fib(n - 1) + fib(n - 2);
}""",
    "gcd": """static int gcd(int a, int b) {
    while (b != 0) {
        int t = a % b;
        a = b;
        b = t;
    }
    return a;
}""",
    "lcm": """static int lcm(int a, int b) {
    int x = a, y = b;
    while (y != 0) {
        int t = x % y;
        x = y;
        y = t;
    }
    return a * b / x;
}""",
    "prime": """static boolean isPrime(int n) {
    if (n < 2) return false;
    for (int i = 2; i * i <= n; i++) {
        if (n % i == 0) return false;
    }
    return true;
}""",
    "primes": """static List<Integer> primes(int n) {
    List<Integer> result = new ArrayList<>();
    for (int i = 2; i <= n; i++) {
        boolean prime = true;
        for (int p : result) if (i % p == 0) prime = false;
        if (prime) result.add(i);
    }
    return result;
}""",
    "palindrome": """static boolean isPalindrome(String s) {
    return new StringBuilder(s).reverse().toString().equals(s);
}""",
    "reverse": """static String reverseString(String s) {
    return new StringBuilder(s).reverse().toString();
}""",
    "word_count": """static int wordCount(String text) {
    return text.isBlank() ? 0 : text.trim().split("\\\\s+").length;
}""",
    "vowels": """static int countVowels(String s) {
    int count = 0;
    for (char c : s.toLowerCase().toCharArray()) {
        if ("aeiou".indexOf(c) >= 0) count++;
    }
    return count;
}""",
    "maximum": """static int findMax(int[] arr) {
    int largest = arr[0];
    for (int x : arr) {
        if (x > largest) largest = x;
    }
    return largest;
}""",
    "sum": """static int sumList(int[] arr) {
    int total = 0;
    for (int x : arr) total += x;
    return total;
}""",
    "average": """static double average(int[] arr) {
    double total = 0;
    for (int x : arr) total += x;
    return total / arr.length;
}""",
    "even": """static boolean isEven(int n) {
    return n % 2 == 0;
}""",
    "power": """static long power(int base, int exponent) {
    long result = 1;
    for (int i = 0; i < exponent; i++) result *= base;
    return result;
}""",
    "unique": """static List<Integer> unique(int[] arr) {
    List<Integer> result = new ArrayList<>();
    for (int x : arr) {
        if (!result.contains(x)) result.add(x);
    }
    return result;
}""",
    "leap": """static boolean isLeapYear(int year) {
    return year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
}""",
    "digits": """static int digitSum(int n) {
    int total = 0;
    while (n > 0) {
        total += n % 10;
        n /= 10;
    }
    return total;
}""",
    "two_sum": """static int[] twoSum(int[] nums, int target) {
    Map<Integer, Integer> seen = new HashMap<>();
    for (int i = 0; i < nums.length; i++) {
        if (seen.containsKey(target - nums[i])) {
            return new int[] {seen.get(target - nums[i]), i};
        }
        seen.put(nums[i], i);
    }
    return new int[0];
}""",
    "fizzbuzz": """static void fizzBuzz(int n) {
    for (int i = 1; i <= n; i++) {
        if (i % 15 == 0) System.out.println("FizzBuzz");
        else if (i % 3 == 0) System.out.println("Fizz");
        else if (i % 5 == 0) System.out.println("Buzz");
        else System.out.println(i);
    }
}""",
    "hello": """public class Main {
    public static void main(String[] args) {
        System.out.println("Hello, World!");
    }
}""",
}
