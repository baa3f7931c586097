import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;

/** Posts a file as Spring does: from a stream, so in chunks; prints the status, then the answer. */
class Post {
    public static void main(String[] arguments) throws Exception {
        byte[] body = Files.readAllBytes(Path.of(arguments[1]));
        // Unless told otherwise the client also offers to go on in HTTP/2, which nobody must take.
        HttpClient.Version version = HttpClient.Version.valueOf(arguments[3]);
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
            .header("Content-Type", arguments[2])
            .expectContinue(arguments.length > 4)
            .POST(HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body)))
            .build();
        HttpResponse<String> answer = HttpClient.newBuilder().version(version).build()
            .send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode());
        System.out.println(answer.body());
    }
}
